"""One browser for all tests of a worker: Playwright runs once in a process."""

import pytest

from tests.book.browser import chromium


@pytest.fixture(scope="session")
def browser():
    with chromium() as browser:
        yield browser
