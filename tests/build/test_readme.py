"""The README's example of the kernels works when it is pasted."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from apar_ext import reference

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"


def test_kernel_example():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (example,) = [block for block in blocks if "import apar_ext" in block]
    names: dict[str, object] = {}
    exec(example, names)
    plan = names["plan"]
    ranges = (plan.page_table, plan.row_indptr, plan.range_stream, plan.range_begin, plan.range_end)
    expected = reference.tree_attention(names["q"], names["k_cache"], names["v_cache"], *ranges)
    torch.testing.assert_close(names["out"], expected, rtol=1e-5, atol=1e-6)
    own = torch.cat([names["k"][:100], names["k"][105:125]])  # the README says which tokens the second branch reads
    gathered = reference.gather_ranges(names["k_cache"], plan.page_table, [(0, 0, 100), (2, 0, 20)])
    assert torch.equal(gathered, own.transpose(0, 1))


def test_links_lead_somewhere():
    links = {
        (page, link)
        for page in [README, *(ROOT / "docs").glob("*.md")]
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    }
    assert links
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []
