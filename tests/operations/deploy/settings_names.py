"""The variables that Remit reads."""

from service.settings import Settings


def known_settings() -> set[str]:
    return {
        str(field.validation_alias) if field.validation_alias is not None else f"REMIT_{name.upper()}"
        for name, field in Settings.model_fields.items()
    }
