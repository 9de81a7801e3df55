import pathlib

import pytest

from tfmm import plain_paths


@pytest.mark.parametrize("name", ["run[v2]", "a*", "what?", "back\\slash"])
def test_folder_with_a_name_like_a_pattern_is_reached_by_another(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    with plain_paths.plain(folder) as path:
        assert not plain_paths.is_pattern(path)
        (pathlib.Path(path) / "file").write_text("here")
    assert (folder / "file").read_text() == "here"
    assert not pathlib.Path(path).exists()


def test_other_folders_keep_their_names(tmp_path):
    with plain_paths.plain(tmp_path / "my run") as path:
        assert path == str(tmp_path / "my run")
