"""Published figures that need neither weights nor data sets, computed again.

A row of ``data/published.json`` holds what a source says (`value`), what was computed when the row
was written (`computed`) and a tolerance. A row that does not agree with its source stays, with the
reason; only a figure that moves away from what was computed before is an error.
"""

from numsim.verify.published.rows import PublishedRow, check_published, published_rows, stored_rows

__all__ = ["PublishedRow", "check_published", "published_rows", "stored_rows"]
