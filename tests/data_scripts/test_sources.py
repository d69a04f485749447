import json
import subprocess
from pathlib import Path

import pytest

from data_scripts import manifest, sources
from data_scripts.manifest import Download
from tests.data_scripts.conftest import CONTENT, entry
from toolkit.data import store

FAKE_NPM = """#!/bin/sh
echo "$@" >> {log}
[ "$1" = view ] && exit {view}
while [ $# -gt 1 ]; do [ "$1" = --pack-destination ] && out=$2; shift; done
printf '{content}' > "$out/package.tgz"
exit {pack}
"""


@pytest.fixture
def npm(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path / "data"))
    log = tmp_path / "log"

    def install(view=0, pack=0, content="published bytes"):
        script = tmp_path / "npm"
        script.write_text(FAKE_NPM.format(log=log, view=view, pack=pack, content=content))
        script.chmod(0o755)
        monkeypatch.setattr(sources, "_npm", lambda: str(script))
        return log

    return install


def package(name="@toy/bytes"):
    return Download(name=name, **entry("npm"))


def test_packages_are_packed_and_verified(npm):
    log = npm()
    sources.from_npm([package(), package("other")])
    assert sources.verified(package()).read_bytes() == CONTENT
    assert sources.place(package("other")).name == "other-1.0.tgz"
    assert [line.split()[:2] for line in log.read_text().splitlines()] == [
        ["view", "@toy/bytes@1.0"],
        ["pack", "@toy/bytes@1.0"],
        ["pack", "other@1.0"],
    ]


def test_unreachable_registry_is_given_up_with_advice(npm):
    log = npm(view=1)
    with pytest.raises(sources.FetchError, match=r"does not answer(.|\n)*Go online"):
        sources.from_npm([package()])
    assert "--fetch-retries=0 --fetch-timeout=10000" in log.read_text()
    assert not sources.place(package()).exists()


def test_replaced_package_is_deleted(npm):
    npm(content="other bytes, same name")
    with pytest.raises(store.ChecksumError, match="has been deleted"):
        sources.from_npm([package()])
    assert list(sources.place(package()).parent.iterdir()) == []


def test_failing_pack_leaves_nothing(npm):
    npm(pack=3)
    with pytest.raises(sources.FetchError, match="npm failed"):
        sources.from_npm([package()])
    assert list(sources.place(package()).parent.iterdir()) == []


def test_file_of_another_length_is_not_here(npm):
    path = sources.place(package())
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:-1])
    assert not sources.is_here(package())
    path.write_bytes(CONTENT)
    assert sources.is_here(package())


def test_missing_program_is_named():
    with pytest.raises(sources.FetchError, match="no-such-program is not installed"):
        sources.run(["no-such-program"])


def test_silent_program_is_given_up():
    with pytest.raises(sources.FetchError, match=r"sleep gave no answer within 0\.1 s"):
        sources.run(["sleep", "5"], timeout=0.1)


def test_failing_program_is_quoted():
    with pytest.raises(sources.FetchError, match="sh failed: out of luck"):
        sources.run(["sh", "-c", "echo out of luck >&2; exit 1"])


def test_file_of_a_wheel_must_be_the_pinned_one():
    pinned = next(one for one in manifest.downloads().values() if one.kind == "wheel")
    assert sources.verified(pinned) == sources.place(pinned)
    other = Download(**{**vars(pinned), "sha256": "0" * 64})
    with pytest.raises(sources.FetchError, match="install that version again"):
        sources.verified(other)
    assert sources.place(pinned).exists()


def test_absent_wheel_is_named():
    with pytest.raises(sources.FetchError, match="no_such_package is not installed"):
        sources.place(Download(name="no_such_package/a.png", **entry("wheel")))


def test_npm_of_this_environment_is_found():
    version = subprocess.run([sources._npm(), "--version"], capture_output=True, text=True)
    assert version.stdout.split(".")[0].isdigit()


def test_manifest_pins_every_download():
    content = json.loads(Path(manifest.PATH).read_text())
    used = {name for dataset in content["datasets"].values() for name in dataset["downloads"]}
    assert used == set(content["downloads"])
    for download in manifest.downloads().values():
        assert len(download.sha256) == 64
        assert download.bytes > 0
        assert all((download.version, download.licence, download.author, download.url))


def test_manifest_key_changes_with_a_pin(toy, tmp_path, monkeypatch):
    from tests.data_scripts.conftest import use_manifest

    before = manifest.key("toy")
    assert manifest.key("toy") == before != manifest.key("toy_large")
    use_manifest(tmp_path, monkeypatch, sha256="0" * 64)
    assert manifest.key("toy") != before
