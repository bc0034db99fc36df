"""The report as one HTML file: no script, style, font or picture from elsewhere, readable without scripts, one anchor a sample.

`data` and `samples` turn an evaluation's folder into plain dicts, `front` and `sample` those into markup. Every text is a model's or a
file's and is escaped by construction (`markup`).
"""

from memfactory.evaluation.html.page import REPORT, write_html

__all__ = ["REPORT", "write_html"]
