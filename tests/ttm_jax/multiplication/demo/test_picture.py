"""Pictures in files."""

import json
import re

import pytest
from matplotlib import image

from ttm_jax.multiplication.demo.picture import PictureError, save_picture
from ttm_jax.multiplication.demo.trace import trace


@pytest.mark.parametrize("problem", [(123, 45), (99999, 99999)])
@pytest.mark.parametrize(
    "fields",
    [
        dict(read="mlp", write="mlp", memory_size=96, process_size=16),
        dict(read="mlp", write="erase_add", carry_head=False),
        dict(schedule="product", carry_head=True),
    ],
)
def test_png(fields, problem, make_multiplier, without_end, tmp_path):
    path = tmp_path / "memory.PNG"
    multiplier = without_end(make_multiplier(**fields))  # all carries are shown then
    save_picture(path, trace(multiplier, *problem))
    pixels = image.imread(path)
    height, width = pixels.shape[:2]
    assert 300 < height < 2500
    assert 600 < width < 4800
    assert pixels.std() > 0.05, "something is drawn"


def test_html_is_the_page_with_the_product_in_it(multiplier, tmp_path):
    result = trace(multiplier, 123, 45)
    path = tmp_path / "memory.html"
    save_picture(path, result)
    page = path.read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*)</script>', page)
    assert json.loads(data)["trace"] == json.loads(json.dumps(result.to_dict()))
    assert re.findall(r"""(?:src|href)\s*=\s*["']?(\w*)""", page) == ["data"], "it loads nothing"
    assert "default-src 'none'" in page


@pytest.mark.parametrize("name", ["memory.png", "memory.html"])
def test_a_file_that_cannot_be_written(name, multiplier, tmp_path):
    path = tmp_path / "missing" / name
    with pytest.raises(PictureError, match=f"{path}: No such file or directory"):
        save_picture(path, trace(multiplier, 1, 2))
