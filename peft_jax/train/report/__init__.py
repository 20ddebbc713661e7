"""Writes what a run did as one page a person can read, keep and send.

``report.html`` needs nothing but itself: no scripts, no fonts, no links, and a
content policy that forbids the browser to fetch any. ``curves.png`` has the
same curves for a slide or a chat. Whatever a run did not measure is left out.
"""

from peft_jax.train.report.contents import Report
from peft_jax.train.report.write import write_report

__all__ = ["Report", "write_report"]
