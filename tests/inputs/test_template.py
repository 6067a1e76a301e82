"""The sandbox and the budget of chat templates."""

import sys
import time

import pytest

from tests.inputs.folders import qwen_like
from triptych.core.errors import ConfigError, RequestError
from triptych.inputs.template import ChatTemplate, load_template

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% for c in r %}{% endfor %}"
        "{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% macro m() %}{% for b in range(99999) %}{% set x = b %}{% endfor %}{% endmacro %}"
        "{% for a in range(99999) %}{{ m() }}{% endfor %}",
    ],
)
def test_a_loop_ends_at_the_budget(source):
    template = ChatTemplate(source, budget_s=0.2)
    before = time.process_time()
    with pytest.raises(RequestError, match="takes too long"):
        template.render(MESSAGES)
    assert time.process_time() - before < 1.0
    assert sys.gettrace() is None or "_enter_frame" not in repr(sys.gettrace())


def test_a_machine_that_stands_still_is_no_fault_of_the_conversation():
    class Slow:
        def __str__(self):
            time.sleep(0.3)
            return "slow"

    template = ChatTemplate("{{ messages[0].content }}\n{{ messages[0].role }}", budget_s=0.2)
    assert template.render([{"role": "user", "content": Slow()}]) == "slow\nuser"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{{ raise_exception('/secret/path') }}",
        "{{ nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{{ messages[7].content }}",
        "{{ 'a' + 1 }}",
        "{% include 'x' %}",
        "{{ range(10**9) | list }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_escapes_and_failures_are_refusals(source):
    with pytest.raises(RequestError) as caught:
        text = ChatTemplate(source).render(MESSAGES)
        assert text in ("", "()"), text
        raise RequestError("rendered to nothing")
    assert "/" not in caught.value.public


def test_rendering_changes_nothing():
    template = ChatTemplate("{% for m in messages %}{{ m.role }}{{ bos_token }}{% endfor %}", {})
    assert template.render(MESSAGES) == "user"
    assert MESSAGES == [{"role": "user", "content": "hi"}]


def test_text_is_never_a_template():
    template = ChatTemplate("{{ messages[0].content }}")
    for text in ("{{ 7 * 7 }}", "{% raw %}", "{#", "<b>&amp;"):
        assert template.render([{"role": "user", "content": text}]) == text


def test_where_the_template_is_found(tmp_path):
    folder = qwen_like(tmp_path / "m")
    assert "Picture 1: " in load_template(str(folder)).render(
        [{"role": "user", "content": [{"type": "image"}]}]
    )
    (folder / "chat_template.jinja").write_text("from the file")
    assert load_template(str(folder)).render([]) == "from the file"
    (folder / "chat_template.jinja").write_text("{% broken")
    with pytest.raises(ConfigError, match="does not compile"):
        load_template(str(folder))
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no chat template"):
        load_template(str(folder))
    (folder / "chat_template.json").write_text('{"chat_template": "old"}')
    assert load_template(str(folder)).render([]) == "old"


def test_variables_of_the_tokenizer(tmp_path):
    folder = qwen_like(tmp_path / "m")
    settings = '{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": null}'
    (folder / "tokenizer_config.json").write_text(settings)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}|{{ eos_token }}|{{ unk_token }}")
    assert load_template(str(folder)).render([]) == "<s>|</s>|"
