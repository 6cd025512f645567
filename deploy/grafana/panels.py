# ruff: noqa: INP001 - run by path, beside the dashboards that it serves
"""The kinds of panel that the dashboards are made of, and the variables that they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models
from grafana_foundation_sdk.models import table as table_models

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
RATE = "$__rate_interval"
RANGE = "$__range"
STEP = "$__interval"
# In Grafana's grid of 24 columns.
HALF, FULL = 12, 24
HEIGHT = 8

Kind = Literal["graph", "stack", "stat", "table", "bars"]
Builder = bargauge.Panel | stat.Panel | table.Panel | timeseries.Panel


@dataclass(frozen=True)
class Query:
    """An expression, and how its series are called. In a table it is a column, which may have a unit of its own."""

    expr: str
    legend: str = ""
    unit: str | None = None


@dataclass(frozen=True)
class Panel:
    """One panel. `normal` says what it looks like on a good day, `otherwise` what to do on another."""

    title: str
    normal: str
    otherwise: str
    queries: Sequence[Query]
    unit: str = "short"
    kind: Kind = "graph"
    width: int = HALF


@dataclass(frozen=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Board:
    """One dashboard. `variables` are labels that it can be narrowed by, each with a metric that has it."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[tuple[str, str]]


def or_zero(numerator: str, whole: str) -> str:
    """An expression that is 0, and not nothing, where the whole exists and the numerator does not (yet)."""
    return f"({numerator}) or ({whole}) * 0"


def gained(series: str, within: str = RANGE) -> str:
    """What counters have gained within the time range, or within a time.

    One that was born in it began with events of its own, which no increase shows: it counts whole, as long as its
    process was scraped before or began since; else it may be the scrapes alone that are new.
    """
    born = f"{series} unless {series} offset {within}"
    younger = f"process_start_time_seconds > on () group_left () min_over_time(vector(time())[{within}:{STEP}])"
    known = f"(up offset {within} == 1) or ({younger})"
    return f"(({born}) and on (job, instance) ({known})) or increase({series}[{within}])"


def quantile(share: float, metric: str, by: str = "", selector: str = "") -> str:
    """A quantile of a histogram."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket{selector}[{RATE}])))"


def build(board: Board) -> models.Dashboard:
    """The dashboard as Grafana takes it."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["remit"])
        .editable()
        .timezone("browser")
        .time("now-6h", "now")
        .refresh("30s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .link(
            dashboard.DashboardLink("Remit").type(models.DashboardLinkType.DASHBOARDS).tags(["remit"]).keep_time(True)
        )
    )
    for name, metric in board.variables:
        built = built.with_variable(_variable(name, metric))
    number = 0
    for row in board.rows:
        number += 1
        built = built.with_row(dashboard.Row(row.title).id(number))
        for panel in row.panels:
            number += 1
            built = built.with_panel(_panel(panel, number))
    made = built.build()
    if made.templating is not None:
        for variable in made.templating.list_val or ():
            # Of variables that are intervals, which these are not: Grafana's schema knows them of no other.
            variable.auto = variable.auto_min = variable.auto_count = None
    for each in made.panels or ():
        options = getattr(each, "options", None)
        if isinstance(options, table_models.Options):
            # Nobody asked for one, and not every version of Grafana has it there.
            options.footer = None
    return made


def _variable(name: str, metric: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .query(f"label_values({metric}, {name})")
        .datasource(DATASOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def _panel(panel: Panel, number: int) -> Builder:
    target = _TARGETS[panel.kind]
    built: Builder
    if panel.kind == "stat":
        built = stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    elif panel.kind == "bars":
        built = (
            bargauge.Panel()
            .orientation(common_models.VizOrientation.HORIZONTAL)
            .display_mode(common_models.BarGaugeDisplayMode.BASIC)
            .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        )
    elif panel.kind == "table":
        built = table.Panel().transformations(_columns(panel)).show_header(True).frame_index(0)
        for query in panel.queries:
            if query.unit is not None:
                unit = models.DynamicConfigValue(id_val="unit", value=query.unit)
                built = built.override_by_name(query.legend, [unit])
        # What was most first.
        built = built.sort_by([common.TableSortByFieldState().display_name(panel.queries[0].legend).desc(True)])
    else:
        built = timeseries.Panel().fill_opacity(10).line_width(1).legend(_legend()).tooltip(_tooltip()).min(0)
        if panel.kind == "stack":
            built = built.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL)).fill_opacity(40)
    built = (
        built.id(number)
        .title(panel.title)
        .description(f"{panel.normal}\n\n{panel.otherwise}")
        .datasource(DATASOURCE)
        .unit(panel.unit)
        .height(HEIGHT)
        .span(panel.width)
    )
    for place, query in enumerate(panel.queries):
        data = prometheus.Dataquery().expr(query.expr).ref_id(chr(ord("A") + place)).datasource(DATASOURCE)
        built = built.with_target(target(data.legend_format(query.legend) if query.legend else data))
    return built


def _over_time(query: prometheus.Dataquery) -> prometheus.Dataquery:
    # Histograms carry traces as their examples, where traces are made.
    return query.range().exemplar(True) if "histogram_quantile" in query.build().expr else query.range()


def _now(query: prometheus.Dataquery) -> prometheus.Dataquery:
    return query.instant()


def _rows(query: prometheus.Dataquery) -> prometheus.Dataquery:
    return query.instant().format(prometheus_models.PromQueryFormat.TABLE)


def _columns(panel: Panel) -> list[models.DataTransformerConfig]:
    """One row for equal labels, a column for each query, and no time: an instant's says nothing."""
    names = {f"Value #{chr(ord('A') + place)}": query.legend for place, query in enumerate(panel.queries)}
    return [
        models.DataTransformerConfig(id_val="merge", options={}),
        models.DataTransformerConfig(
            id_val="organize",
            options={"excludeByName": {"Time": True}, "renameByName": names | {"Value": panel.queries[0].legend}},
        ),
    ]


_TARGETS = {"graph": _over_time, "stack": _over_time, "stat": _now, "bars": _now, "table": _rows}


def _legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.TABLE)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull", "max"])
    )


def _tooltip() -> common.VizTooltipOptions:
    return (
        common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI).sort(common_models.SortOrder.DESCENDING)
    )
