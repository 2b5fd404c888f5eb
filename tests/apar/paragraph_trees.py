"""Random trees of paragraphs, for property tests."""

from __future__ import annotations

from hypothesis import strategies as st


def paragraph_trees(texts: st.SearchStrategy[str], depth: int = 3) -> st.SearchStrategy[list[dict]]:
    """Paragraphs as `ParagraphTree.to_dict` gives them, of texts that are not empty, up to ``depth`` levels."""
    if depth == 1:
        return st.lists(st.fixed_dictionaries({"text": texts}), min_size=1, max_size=1)
    with_detail = st.fixed_dictionaries({"text": texts, "detail": paragraph_trees(texts, depth - 1)})
    last = st.fixed_dictionaries({"text": texts | st.just("")})
    return st.tuples(st.lists(with_detail, max_size=3), last).map(
        lambda parts: [*parts[0], parts[1]] if parts[0] or parts[1]["text"] else [{"text": "a"}]
    )
