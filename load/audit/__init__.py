"""What must be true of a database, whatever happened to the processes that wrote it, asked in SQL.

`python -m load.audit DATABASE` prints what is wrong, a sentence a line, and fails if there is any. Retention takes
events and decisions away by age; of a database on which it has run, those checks say so.
"""

from load.audit.auditing import CHECKS, MOST_PER_CHECK, audit
from load.audit.check import Check
from load.audit.overdue import OVERDUE

__all__ = ["CHECKS", "MOST_PER_CHECK", "OVERDUE", "Check", "audit"]
