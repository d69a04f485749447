"""What the tests of this part share."""

import pytest


class Stopped(Exception):
    """What ends a run after its first epoch."""


@pytest.fixture
def run_until_a_checkpoint(monkeypatch):
    """Run something of a module until it has kept its first checkpoint, and no further."""

    def run_until(scale, run):
        kept = scale.save_checkpoint

        def keep_then_stop(folder, name, parts, done):
            kept(folder, name, parts, done)
            raise Stopped

        with monkeypatch.context() as patch:
            patch.setattr(scale, "save_checkpoint", keep_then_stop)
            with pytest.raises(Stopped):
                run()

    return run_until
