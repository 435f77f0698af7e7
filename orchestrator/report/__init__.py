"""What became of a run: reads its folder, sums it up in a table and draws it on a page that needs nothing else."""

from orchestrator.report.page import write_page
from orchestrator.report.run_record import RunRecord, RunRecordError, read_run
from orchestrator.report.table import print_table

__all__ = ["RunRecord", "RunRecordError", "print_table", "read_run", "write_page"]
