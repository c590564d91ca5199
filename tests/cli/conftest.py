"""The command line as a function."""

import pytest
from click.testing import CliRunner

from bitquant.cli import main


@pytest.fixture
def bitquant_cli():
    """Runs ``bitquant ARGUMENTS`` in this process: a result with ``exit_code``, ``stdout`` and ``stderr``."""

    def run(*arguments):
        return CliRunner().invoke(main, [str(a) for a in arguments])

    return run
