"""Settings: where they come from, who wins, and the sentence of each that cannot be."""

from pathlib import Path
from typing import Any

import pytest

from server.settings import ABOUT, DEFAULTS, NAMES, Settings, SettingsError, markdown, shown


def test_flags_win_over_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "croupier.toml"
    file.write_text('port = 1\nworkers = 2\nflush_ms = 3\ndata = "from-file"\n')
    env = {"CROUPIER_WORKERS": "4", "CROUPIER_FLUSH_MS": "5.5", "CROUPIER_CONFIG": "not used: the flag names a file"}
    settings = Settings.load(file, env, {"flush_ms": "7", "shards": None})
    assert (settings.port, settings.workers, settings.flush_ms) == (1, 4, 7.0)
    assert settings.data == Path("from-file")
    assert settings.shards == DEFAULTS["shards"]
    assert Settings.load(env={"CROUPIER_CONFIG": str(file)}).port == 1


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Settings().port = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("port", "http", "a whole number from 0 to 65,535"),
        ("port", "65536", "a whole number from 0 to 65,535"),
        ("port", 80.5, "a whole number"),
        ("port", True, "a whole number"),
        ("workers", 0, "from 1 to 256"),
        ("workers", "9" * 5000, "from 1 to 256"),
        ("flush_ms", "nan", "a number from 0 to 10,000"),
        ("flush_ms", "inf", "a number from 0 to 10,000"),
        ("flush_ms", [1], "a number from 0 to 10,000"),
        ("access_log", "perhaps", "true or false"),
        ("log_level", "loud", "one of debug, info, warning, error"),
        ("data", "", "a text that is not empty"),
        ("host", 5, "a text that is not empty"),
    ],
)
def test_a_bad_value_names_setting_value_source_and_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load(flags={name: value})
    sentence = str(caught.value)
    flag = "--" + name.replace("_", "-")
    assert sentence.startswith(f"setting {name} = {value!r} (from {flag}): must be ")
    assert allowed in sentence
    assert sentence.endswith(".")


def test_an_unknown_key_in_the_file_gets_a_suggestion(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("wrokers = 2\n")
    with pytest.raises(SettingsError, match=r"wrokers .*c\.toml.*did you mean workers\?"):
        Settings.load(file)


@pytest.mark.parametrize("content", [b"port = ", b"\xff", b"[api_keys"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match="is not TOML"):
        Settings.load(file)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        Settings.load(tmp_path / "none.toml")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_an_open_address_needs_keys_or_a_clear_word(host: str) -> None:
    with pytest.raises(SettingsError, match=f"host = '{host}': is not a loopback address"):
        Settings(host=host)
    assert Settings(host=host, allow_open=True).host == host
    assert Settings.load(flags={"host": host, "api_keys": "ops:admin:0123456789abcdef"}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_may_run_open(host: str) -> None:
    assert Settings(host=host).api_keys == ()


def test_keys_come_from_a_list_or_a_text_and_are_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('api_keys = ["a:admin:0123456789abcdef", "b:recommend+feedback:0123456789abcdeg"]\n')
    from_file = Settings.load(file).api_keys
    text = "a:admin:0123456789abcdef, b:recommend+feedback:0123456789abcdeg"
    assert Settings.load(env={"CROUPIER_API_KEYS": text}).api_keys == from_file
    assert [key.name for key in from_file] == ["a", "b"]
    for bad in ("a:admin:0123", "a:root:hidden-0123456789", "a:admin:0123456789abcdef,a:admin:0123456789abcdef"):
        with pytest.raises(SettingsError) as caught:
            Settings.load(env={"CROUPIER_API_KEYS": bad})
        assert "0123" not in str(caught.value)


def test_log_and_store_of_many_machines_come_together_and_hide_their_secrets() -> None:
    log, store = "kafka://h:9092/shop?sasl_plain_password=hunter2", "rediss://app:hunter2@h:6379/shop"
    settings = Settings.load(env={"CROUPIER_LOG": log, "CROUPIER_STORE": store})
    assert (settings.log, settings.store) == (log, store)
    assert shown("log", log) == "kafka://h:9092/shop?sasl_plain_password=***"
    assert shown("store", store) == "rediss://***@h:6379/shop"
    assert shown("log", "") == "none"
    assert Settings.load(env={"CROUPIER_LOG": "", "CROUPIER_STORE": ""}).log == ""  # as a compose file leaves them
    for env, missing in (({"CROUPIER_LOG": log}, "store"), ({"CROUPIER_STORE": store}, "log")):
        with pytest.raises(SettingsError, match=f"setting {missing}: is missing") as caught:
            Settings.load(env=env)
        assert "hunter2" not in str(caught.value)
    for name, bad in (("log", store), ("store", log), ("log", "/var/lib/log.sqlite"), ("store", 5)):
        with pytest.raises(SettingsError, match=f"setting {name} = .*must be a text that begins with") as caught:
            Settings.load(flags={name: bad})
        assert "hunter2" not in str(caught.value)


def test_the_page_in_the_documentation_is_what_the_command_prints() -> None:
    page = Path(__file__).parents[2] / "docs" / "settings.md"
    assert page.read_text() == markdown(), "croupier settings --markdown > docs/settings.md"


def test_the_table_has_every_setting_with_its_default() -> None:
    table = markdown()
    for name in NAMES:
        assert f"| `{name}` |" in table
        assert ABOUT[name].help in table
    assert "| `flush_ms` | number | 10.0 | ms |" in table
