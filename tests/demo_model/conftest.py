"""The processor and the tiny model of the tests of what ships."""

from tests.demo.conftest import processor as processor
from tests.demo.conftest import tiny_model as tiny_model
