"""ModelServerConfig files."""

import pytest

from serving.model_server import config, errors


def test_policies_and_labels_are_read(tmp_path):
    path = tmp_path / "models.config"
    path.write_text("""model_config_list {
        config { name: "a" base_path: "/a" model_platform: "tensorflow" }
        config { name: "b" base_path: "/b" model_version_policy { all {} } }
        config { name: "c" base_path: "/c" model_version_policy { specific { versions: 4 versions: 9 } }
                 version_labels { key: "stable" value: 4 } }
        config { name: "d" base_path: "/d" model_version_policy { latest { num_versions: 2 } } }
    }""")
    a, b, c, d = config.read_file(str(path))
    assert [m.wanted([3, 4, 9, 10]) for m in (a, b, c, d)] == [[10], [3, 4, 9, 10], [4, 9], [9, 10]]
    assert c.labels == (("stable", 4),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "models.config"),
        ("caf\udce9", "models.config: 'utf-8' codec can't decode"),
        ("", "model_config_list"),
        ('model_config_list { config { name: "a" } }', "needs `name` and `base_path`"),
        (
            'model_config_list { config { name: "a" base_path: "/a" model_platform: "other" } }',
            "must be tensorflow",
        ),
        (
            'model_config_list { config { name: "a" base_path: "/a" } config { name: "a" base_path: "/b" } }',
            "unique",
        ),
    ],
)
def test_bad_configs_are_refused(tmp_path, text, message):
    path = tmp_path / "models.config"
    path.write_text(text, "utf-8", "surrogateescape")
    with pytest.raises(errors.ServingError, match=message):
        config.read_file(str(path))
