"""A part of a trail for somebody else, with what proves it; and the checker, one file that imports nothing of ours."""

from etl.audit.bundle import Bundle, write_bundle
from etl.audit.extent import Extent

__all__ = ["Bundle", "Extent", "write_bundle"]
