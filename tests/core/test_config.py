"""The configuration: what it takes, from where, and how it refuses."""

import traceback
from pathlib import Path

import pytest

from triptych.core.config import Config, dump, load, undump
from triptych.core.errors import ConfigError


def test_defaults_need_nothing():
    assert load(environment={}) == Config()


def test_the_file_then_the_environment_then_overrides(tmp_path: Path):
    file = tmp_path / "triptych.toml"
    file.write_text('[cluster]\ntopology = "EPD1"\n[cache]\nkv_blocks = 7\nblock_size = 8\n')
    environment = {"TRIPTYCH_CACHE__KV_BLOCKS": "9", "TRIPTYCH_LOG__LEVEL": "info", "HOME": "/"}
    config = load(file, ["cache.kv_blocks=11", "router.http=127.0.0.1:80"], environment)
    assert config.cluster.topology == "EPD1"
    assert (config.cache.block_size, config.cache.kv_blocks) == (8, 11)
    assert (config.log.level, config.router.http) == ("info", "127.0.0.1:80")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("cache.kv_blocks=0", "cache.kv_blocks"),
        ("cache.kv_blocks=many", "cache.kv_blocks"),
        ("cache.kv_blok=3", "kv_blok"),
        ("caches.kv_blocks=3", "caches"),
        ("cluster.topology=E1,P1", "cluster.topology"),
        ("cluster.backend=docker", "cluster.backend"),
        ("router.placement=luck", "router.placement"),
        ("router.admin=0.0.0.0:1", "router.admin_key"),
        ("router.allow_remote_pictures=true", "router.allow_remote_pictures"),
        ("engine.token_budget=16", "engine.token_budget"),
        ("engine", "engine"),
        ("engine=3", "engine"),
    ],
)
def test_a_wrong_value_is_named(override: str, named: str):
    with pytest.raises(ConfigError) as refused:
        load(None, [override], {})
    assert named in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:sesame@cache/0?bogus=1",
        "redis://:sesame@cache/0?protocol=3",
        "unix://:sesame@/run/socket?db=1",
        "redis://:pa/sesame@cache:6379/0",
        "redis://:12/sesame@cache:6379/0",
        "redis://user:12/sesame@cache:6379/0",
        "unix://user:pa/sesame@/run/socket",
        "redis://:pa?sesame@cache:6379/0",
        "redis://:pa#sesame@cache:6379/0",
        "redis://:pa[sesame@cache:6379/0",
        "redis://:sesame@cache:port/0",
        "redis://:sesame@cache:65536/0",
        "redis://:sesame@cache/zero",
        "redis://:sesame@",
        "unix://:sesame@run/socket",
        "http://:sesame@cache/0",
        "embedded://sesame",
    ],
)
def test_a_directory_that_the_client_would_not_understand_is_refused_and_not_shown(url: str):
    with pytest.raises(ConfigError, match=r"^cluster\.directory: ") as refused:
        load(None, [f'cluster.directory="{url}"'], {})
    shown = "".join(traceback.format_exception(refused.value))
    assert "sesame" not in shown
    assert "pa/" not in shown
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None


@pytest.mark.parametrize(
    "url",
    [
        "embedded",
        "redis://cache",
        "redis://cache:6379/0",
        "rediss://user:p%2Fa:s+s@cache-1.example.org:6380/3",
        "redis://[::1]:6379/0",
        "unix:///run/redis/socket",
        "unix://user:password@/run/redis/socket",
    ],
)
def test_a_directory_is_taken(url: str):
    assert load(None, [f"cluster.directory={url}"], {}).cluster.directory == url


def test_a_wrong_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        load(tmp_path / "absent.toml", (), {})
    broken = tmp_path / "broken.toml"
    broken.write_text("[cache\n")
    with pytest.raises(ConfigError, match=r"broken\.toml"):
        load(broken, (), {})


def test_an_admin_door_beyond_loopback_needs_a_key():
    open_wide = ["router.admin=0.0.0.0:1", "router.admin_key=secret"]
    assert load(None, open_wide, {}).router.admin_key == "secret"
    assert load(None, ['router.admin=""'], {}).router.admin == ""


@pytest.mark.parametrize("key", ["transfer.wire", "cache.at_rest"])
@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_deterministic_takes_nothing_that_rounds(key: str, form: str):
    assert load(None, [f"{key}={form}"], {})
    assert load(None, ["engine.deterministic=true", f"{key}=raw"], {})
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        load(None, ["engine.deterministic=true", f"{key}={form}"], {})


def test_it_travels_between_processes():
    config = load(None, ["cluster.topology=E2,PD3", 'router.api_keys={"k" = "t"}'], {})
    assert undump(dump(config)) == config
