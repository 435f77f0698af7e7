"""What became of a run: reads its folder, sums it up in a table and draws it on a page that needs nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from state.lazy_names import lazy_names

if TYPE_CHECKING:
    from orchestrator.report.page import write_page as write_page
    from orchestrator.report.run_record import RunRecord as RunRecord
    from orchestrator.report.run_record import RunRecordError as RunRecordError
    from orchestrator.report.run_record import read_run as read_run
    from orchestrator.report.table import print_table as print_table
else:
    __getattr__, __dir__ = lazy_names(__name__)
