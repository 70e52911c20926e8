"""docs/interop.md runs as printed, each block where its package is installed:

pip install nnsight transformer-lens sae-lens    and then: pytest tests/read/test_interop.py
"""

import re

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import lensmith
from tests.support.pages import blocks
from tests.support.released import save_release
from tests.support.settings import REPOSITORY

BLOCKS = blocks(REPOSITORY / "docs" / "interop.md", "python")
PACKAGES = [(re.findall(r"^from (\w+)", block) or ["torch"])[0] for block in BLOCKS]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with a tiny model in the place of the bundled one, and what docs/use.md leaves behind."""
    folder = tmp_path_factory.mktemp("lab")
    release, _, _ = save_release(folder, n_layers=8)
    (folder / "demo").mkdir()
    (folder / "demo" / "atlas").symlink_to(folder / "model")
    return folder, lensmith.load(release)


@pytest.mark.filterwarnings("ignore")  # of the other package
@pytest.mark.parametrize("block", BLOCKS, ids=PACKAGES)
def test_a_block_reads_the_residuals_of_the_text(block, lab, monkeypatch):
    """What another library captures has the numbers of our own forward pass."""
    package = PACKAGES[BLOCKS.index(block)]
    pytest.importorskip(package)
    folder, lens = lab
    monkeypatch.chdir(folder)
    model, tokenizer = (auto.from_pretrained("demo/atlas") for auto in (AutoModelForCausalLM, AutoTokenizer))
    names = {"lensmith": lensmith, "lens": lens, "model": model, "tokenizer": tokenizer}
    names["reader"] = lensmith.bind(lens, model, tokenizer)
    wanted = names["reader"].trajectory("The capital of Germany is", layers=[8]).readings.by_lens["tuned"]
    if package == "sae_lens":
        exec(BLOCKS[0], names)  # it goes on from the first block
        save_sae(folder / "sae", model.config.hidden_size)
    # Each block ends in what it shows.
    *lines, last = block.strip().splitlines()
    script = folder / f"{package}_block.py"  # nnsight reads the source of a trace from its file
    script.write_text("\n".join([*lines, f"shown = {last}"]))
    exec(compile(script.read_text(), script, "exec"), names)

    if package == "sae_lens":
        assert len(names["shown"]) == 12 and "change1" in names["shown"]
    elif package == "nnsight":
        assert names["top"][0, :, 0].tolist() == wanted.top_ids[0, :, 0].tolist()
    else:
        np.testing.assert_allclose(names["shown"].prob1, wanted.top_p[0, :, 0], rtol=1e-3)


def save_sae(folder, width) -> None:
    from sae_lens import StandardSAE, StandardSAEConfig

    StandardSAE(StandardSAEConfig(d_in=width, d_sae=12, device="cpu")).save_model(folder)
