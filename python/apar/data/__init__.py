"""Paragraph trees from chat data: made by ``apar data build``, read by ``read_trees``."""

from apar.data.records import TreeRecord, read_trees, write_trees

__all__ = ["TreeRecord", "read_trees", "write_trees"]
