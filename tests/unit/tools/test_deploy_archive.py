"""An artifact is what was signed, bit for bit, or nothing of it is written."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callboard.actors.tools.deploy.archive import (
    archive_size,
    check_archive,
    decode_manifest,
    encode_manifest,
    is_intact,
    pack,
    remove,
    unpack,
)
from callboard.actors.tools.deploy.errors import ArtifactDamaged, ToolUntrusted
from callboard.actors.tools.deploy.keys import check_public_key, check_signature, load_signer, new_signer
from callboard.runtime.errors import ConfigError
from callboard.schemas.tool_deploy import ArtifactFile, Manifest

CONTENTS = {"a.py": b"print('a')\n", "pkg/__init__.py": b"", "pkg/data.bin": bytes(range(256)) * 5, "run.sh": b"#!\n"}


def manifest_of(contents: dict[str, bytes]) -> Manifest:
    files = tuple(
        ArtifactFile(path, len(data), hashlib.sha256(data).hexdigest(), path.endswith(".sh"))
        for path, data in sorted(contents.items())
    )
    return Manifest(name="files", version="1.0", entry="pkg:TOOLS", files=files)


def archive_of(contents: dict[str, bytes]) -> bytes:
    manifest = manifest_of(contents)
    return b"".join(pack(manifest, [contents[file.path] for file in manifest.files]))


MANIFEST = manifest_of(CONTENTS)
ARCHIVE = archive_of(CONTENTS)


# The archive


def test_any_tar_reads_it(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(ARCHIVE)) as tar:
        assert tar.getnames() == sorted(CONTENTS)
        for member in tar.getmembers():
            stream = tar.extractfile(member)
            assert stream is not None
            assert stream.read() == CONTENTS[member.name]
            assert member.mode == (0o555 if member.name == "run.sh" else 0o444)
    assert len(ARCHIVE) == archive_size(MANIFEST)


def test_the_same_files_give_the_same_bytes_in_any_order() -> None:
    assert archive_of(dict(reversed(CONTENTS.items()))) == ARCHIVE


@given(
    st.dictionaries(
        st.lists(st.text("abcé-_", min_size=1, max_size=60), min_size=1, max_size=4)
        .map("/".join)
        .filter(lambda path: len(path.encode()) <= 200),
        st.binary(max_size=2000),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=60)
def test_what_is_packed_comes_out_again(tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes]) -> None:
    manifest = manifest_of(contents)
    try:
        manifest = decode_manifest(encode_manifest(manifest))
        archive = archive_of(contents)
    except ArtifactDamaged:  # a file that is a folder too, or a name that no header takes
        return
    target = tmp_path_factory.mktemp("unpacked") / "here"
    unpack(manifest, memoryview(archive), target)
    assert {
        path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()
    } == contents
    assert is_intact(manifest, target)


@given(st.integers(0, len(ARCHIVE) * 8 - 1))
@settings(max_examples=300)
def test_one_flipped_bit_anywhere_in_the_archive_is_refused(bit: int) -> None:
    changed = bytearray(ARCHIVE)
    changed[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(ArtifactDamaged):
        check_archive(MANIFEST, memoryview(changed))


@pytest.mark.parametrize("archive", [b"", ARCHIVE[:-512], ARCHIVE + bytes(512), ARCHIVE[:700]])
def test_an_archive_of_another_length_is_refused(archive: bytes) -> None:
    with pytest.raises(ArtifactDamaged, match="bytes, and its manifest says"):
        check_archive(MANIFEST, memoryview(archive))


def member(name: str, kind: bytes, target: str = "", data: bytes = b"") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(data)
    return info, data


def tar_of(members: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


HOSTILE = {
    "absolute path": member("/etc/cron.d/x", tarfile.REGTYPE, data=b"x"),
    "parent folder": member("../../x", tarfile.REGTYPE, data=b"x"),
    "symbolic link": member("x", tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": member("x", tarfile.LNKTYPE, "/etc/passwd"),
    "character device": member("x", tarfile.CHRTYPE),
    "block device": member("x", tarfile.BLKTYPE),
    "pipe": member("x", tarfile.FIFOTYPE),
    "folder": member("x", tarfile.DIRTYPE),
    "sparse file": member("x", tarfile.GNUTYPE_SPARSE, data=b"x" * 512),
    "extended header": member("x", tarfile.XHDTYPE, data=b"17 path=/etc/pass\n"),
    "long name": member("././@LongLink", tarfile.GNUTYPE_LONGNAME, data=b"/etc/passwd\0"),
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("stated", [True, False])
def test_a_signed_archive_with_such_a_member_is_refused_and_writes_nothing(
    what: str, stated: bool, tmp_path: Path
) -> None:
    info, data = HOSTILE[what]
    honest = tarfile.TarInfo("a.py")
    honest.size = 1
    archive = tar_of([(honest, b"a"), (info, data)])
    contents = {"a.py": b"a", **({info.name: data} if stated else {})}
    with pytest.raises(ArtifactDamaged):
        unpack(decode_manifest(encode_manifest(manifest_of(contents))), memoryview(archive), tmp_path / "out" / "x")
    assert not list(tmp_path.rglob("*"))


# The manifest


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/.", "a/", "", "\\\\host\\share", "C:x", "a\0b", "a\nb"),
        *("a\u202eyp.x", "x" * 300, "con ", "dot.", "\ud800"),
    ],
)
def test_a_path_that_is_not_safe_is_refused(path: str) -> None:
    text = msgspec.json.encode(
        {
            **msgspec.to_builtins(MANIFEST),
            "files": [{"path": "PATH", "size": 0, "digest": "0" * 64}],
            "entry": "a:b",
        }
    )
    import json

    said = text.replace(b'"PATH"', json.dumps(path).encode())
    with pytest.raises(ArtifactDamaged):
        decode_manifest(said)


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "A"), ("é", "e\u0301"), ("a", "a/b"), ("A/x", "a"), ("ß", "SS")])
def test_two_paths_that_meet_on_some_file_system_are_refused(paths: tuple[str, str]) -> None:
    files = tuple(ArtifactFile(path, 0, hashlib.sha256().hexdigest()) for path in paths)
    with pytest.raises(ArtifactDamaged):
        decode_manifest(encode_manifest(msgspec.structs.replace(MANIFEST, files=files)))


def test_limits_are_looked_at_before_a_byte_was_fetched() -> None:
    digest = "0" * 64
    many = tuple(ArtifactFile(f"f{n}", 0, digest) for n in range(10_001))
    large = (ArtifactFile("f", 1 << 39, digest),)
    for files, match in ((many, "10000 files"), (large, "512 MiB")):
        with pytest.raises(ArtifactDamaged, match=match):
            decode_manifest(encode_manifest(msgspec.structs.replace(MANIFEST, files=files)))
    with pytest.raises(ArtifactDamaged, match="at most 8 MiB"):
        decode_manifest(b" " * (9 << 20))


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b"[" * 100_000, b'{"format": 1}', b"\xff", encode_manifest(MANIFEST)[:-1]]
)
def test_what_is_no_manifest_is_refused(text: bytes) -> None:
    with pytest.raises(ArtifactDamaged):
        decode_manifest(text)


def test_a_manifest_with_what_nobody_knows_or_of_a_later_format_is_refused() -> None:
    with pytest.raises(ArtifactDamaged, match="unknown field"):
        decode_manifest(encode_manifest(MANIFEST)[:-1] + b',"post_install":"rm"}')
    with pytest.raises(ArtifactDamaged, match="format 2"):
        decode_manifest(encode_manifest(msgspec.structs.replace(MANIFEST, format=2)))


@pytest.mark.parametrize("line", ["--index-url x", "-e .", "a\nb", "./wheels/none.whl", "./../x.whl"])
def test_a_requirement_that_is_an_option_or_a_file_elsewhere_is_refused(line: str) -> None:
    with pytest.raises(ArtifactDamaged):
        decode_manifest(encode_manifest(msgspec.structs.replace(MANIFEST, requirements=(line,))))


def test_an_entry_that_is_not_among_the_files_is_refused() -> None:
    with pytest.raises(ArtifactDamaged, match=r"other\.py"):
        decode_manifest(encode_manifest(msgspec.structs.replace(MANIFEST, entry="other.py")))


# The folder


def test_unpacked_files_are_read_only_and_a_change_is_seen(tmp_path: Path) -> None:
    target = tmp_path / "here"
    unpack(MANIFEST, memoryview(ARCHIVE), target)
    assert {oct(path.stat().st_mode & 0o222) for path in target.rglob("*")} == {"0o0"}
    assert os.access(target / "run.sh", os.X_OK)
    assert is_intact(MANIFEST, target)
    os.chmod(target, 0o700)
    (target / "extra.py").write_text("")
    assert not is_intact(MANIFEST, target)
    (target / "extra.py").unlink()
    assert is_intact(MANIFEST, target)
    (target / "a.py").unlink()
    (target / "a.py").symlink_to("/etc/hostname")
    assert not is_intact(MANIFEST, target)
    remove(target)
    assert not target.exists()


def test_a_folder_that_is_there_already_is_not_touched(tmp_path: Path) -> None:
    target = tmp_path / "here"
    target.mkdir()
    (target / "kept").write_text("x")
    with pytest.raises(OSError, match="not empty"):
        unpack(MANIFEST, memoryview(ARCHIVE), target)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert (target / "kept").read_text() == "x"


# Signatures


def test_a_key_is_kept_for_this_person_alone_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "config" / "signer.key"
    signer = new_signer(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_signer(path) == signer
    assert check_public_key(signer.public) == signer.public
    assert path.read_text().strip().removeprefix("ed25519-secret:") not in repr(signer)
    with pytest.raises(ConfigError, match="already"):
        new_signer(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="others may read"):
        load_signer(path)
    path.chmod(0o600)
    path.write_text("ed25519-secret:short")
    with pytest.raises(ConfigError, match="holds no"):
        load_signer(path)
    with pytest.raises(ConfigError, match="no key to sign"):
        load_signer(tmp_path / "none.key")


def test_a_signature_holds_for_these_bytes_and_this_key_only(tmp_path: Path) -> None:
    one, two = new_signer(tmp_path / "one"), new_signer(tmp_path / "two")
    text = encode_manifest(MANIFEST)
    signature = one.sign(text)
    check_signature(text, one.public, signature, (two.public, one.public), "n")
    with pytest.raises(ToolUntrusted, match="takes no tools of the signer") as refused:
        check_signature(text, one.public, signature, (two.public,), "n")
    assert f"--allow-tools-from {one.public}" in refused.value.hint
    with pytest.raises(ToolUntrusted, match="takes no tools"):
        check_signature(text, one.public, signature, (), "n")
    allowed = (one.public, two.public)
    for said, signer, sign in (
        (text, two.public, signature),
        (text + b" ", one.public, signature),
        (text, one.public, ""),
        (text, one.public, "zz"),
        (text, one.public, signature[:-2]),
        (text, one.public, two.sign(text)),
    ):
        with pytest.raises(ToolUntrusted, match="is not of this artifact"):
            check_signature(said, signer, sign, allowed, "n")


@given(st.integers(0, 64 * 8 - 1), st.booleans(), st.data())
@settings(max_examples=100)
def test_one_flipped_bit_of_signature_or_manifest_is_refused(
    tmp_path_factory: pytest.TempPathFactory, bit: int, of_manifest: bool, data: st.DataObject
) -> None:
    signer = new_signer(tmp_path_factory.mktemp("key") / "k")
    text = bytearray(encode_manifest(MANIFEST))
    signature = bytearray.fromhex(signer.sign(bytes(text)))
    if of_manifest:
        bit = data.draw(st.integers(0, len(text) * 8 - 1))
        text[bit // 8] ^= 1 << (bit % 8)
    else:
        signature[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(ToolUntrusted):
        check_signature(bytes(text), signer.public, signature.hex(), (signer.public,), "n")


@pytest.mark.parametrize("key", ["", "ed25519:", "x" * 51, "ed25519:" + "A" * 42 + "B", "ed25519:" + "A" * 44])
def test_what_is_no_public_key_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="is no public key"):
        check_public_key(key)
