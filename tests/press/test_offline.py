import pytest

from toolkit.press.sphinx_ext import external_requests


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<script async src="//cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="http://fonts.example/a.css">',
        '<link href="https://fonts.example/a.css" rel="preload">',
        "<img alt='' src='https://x.example/y.png'>",
        '<iframe src="https://video.example"></iframe>',
    ],
)
def test_a_request_that_leaves_the_site_is_found(tmp_path, tag):
    (tmp_path / "page.html").write_text(f"<p>{tag}</p>")
    ((page, found),) = external_requests(tmp_path)
    assert page == "page.html"
    assert "example" in found


def test_links_that_a_reader_may_follow_are_no_requests(tmp_path):
    (tmp_path / "page.html").write_text(
        '<a href="https://arxiv.org/abs/2105.06015">paper</a><link rel="canonical" href="https://x.example">'
        '<script src="_static/x.js"></script>'
    )
    assert list(external_requests(tmp_path)) == []
