"""What the tests of the documentation share: the browser of mil's tests."""

from tests.mil.conftest import browser

__all__ = ["browser"]
