from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.config.fields import settings_of
from orchestrator.hooks.check import HookConfigurationError, check_hooks, predecessors
from orchestrator.hooks.hook import Every, Hook, hook_name
from state.trainer_state import TrainerState
from tests.paths import PROJECT


class AnHTTPHook(Hook):
    async def on_epoch_end(self, state: TrainerState) -> None: ...


def hook(name: str, **settings: Any) -> Hook:
    made = AnHTTPHook()
    made.name = name
    for setting, value in settings.items():
        setattr(made, setting, value)
    return made


def problems(*hooks: Any) -> str:
    with pytest.raises(HookConfigurationError) as caught:
        check_hooks(hooks)
    return str(caught.value)


def test_a_hook_is_named_after_its_class() -> None:
    assert hook_name(AnHTTPHook()) == "an_http_hook"
    assert hook_name(hook("mine")) == "mine"


def test_good_hooks_pass() -> None:
    check_hooks([])
    check_hooks([hook("b", after=("a",)), hook("a", every=Every(seconds=0.5), timeout=1.5)])


def test_two_hooks_of_one_name_are_refused() -> None:
    assert "2 hooks are called 'an_http_hook'; give each its own `name`" in problems(AnHTTPHook(), AnHTTPHook())


def test_unknown_and_circular_predecessors_are_refused() -> None:
    assert "hook 'a' comes after 'b', and there is no such hook; there are ['a']" in problems(hook("a", after=("b",)))
    assert "cycle: a after c after b after a" in problems(
        hook("a", after=("c",)), hook("b", after=("a",)), hook("c", after=("b",)), hook("d", after=("a",))
    )
    assert "cycle: a after a" in problems(hook("a", after=("a",)))
    assert "`after` must be a tuple of texts, not 'b'; write ('b',)" in problems(hook("a", after="b"), hook("b"))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"every": 0}, "`every` must be a number of epochs above 0, or an Every with one positive distance, not 0"),
        ({"every": 2.5}, "`every` must be a whole number or Every(...), not 2.5; the default is 1"),
        ({"every": Every()}, "`every` must be a number of epochs"),
        ({"every": Every(epochs=1, seconds=1)}, "`every` must be a number of epochs"),
        ({"every": Every(agent_steps=-5)}, "`every` must be a number of epochs"),
        ({"max_lag": 0}, "`max_lag` must be at least 1, not 0"),
        ({"timeout": 0}, "`timeout` must be a number above 0, not 0; leave it out for the default"),
        ({"retries": -1}, "`retries` must be at least 0, not -1"),
        ({"backoff": -0.5}, "`backoff` must be a finite number, 0 or above, not -0.5"),
        ({"disable_after": 0}, "`disable_after` must be at least 1, not 0; the default is 3"),
        ({"drain": "no"}, "`drain` must be true or false, not 'no'"),
        ({"transient": OSError}, "`transient` must be a tuple of exception classes"),
        ({"overflow": "wait"}, "`overflow` must be one of block, coalesce, drop, error, not 'wait'"),
        ({"on_error": "ignore"}, "`on_error` must be one of log, disable, stop, raise, not 'ignore'"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], problem: str) -> None:
    assert f"hook 'mine': {problem}" in problems(hook("mine", **settings))


def test_the_documentation_has_every_setting_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", (PROJECT / "docs" / "hooks.md").read_text(), re.MULTILINE)
    described = dict(rows) | {"saves": "no"}
    words = {"None": "none", "True": "yes", "False": "no", "": "the class's name in snake_case"}
    for name, setting in settings_of(Hook).items():
        default: Any = setting.default
        kinds = name == "transient" and f"({', '.join(kind.__name__ for kind in default)})"
        assert described[name].strip("`") == (kinds or words.get(str(default), str(default)))


def test_a_callback_that_does_not_exist_is_refused_with_the_nearest_that_does() -> None:
    class Misspelt(Hook):
        async def on_epoch_ended(self, state: TrainerState) -> None: ...

        async def on_message(self, message: str) -> None: ...

    found = problems(Misspelt())
    assert "there is no callback 'on_epoch_ended'; did you mean 'on_epoch_end'?" in found
    assert "on_message" not in found
    assert "it overrides no callback, so it would never be called" in found


def test_the_callback_of_losses_is_explained() -> None:
    class Mistaken(Hook):
        async def on_epoch_end(self, state: TrainerState) -> None: ...

        async def on_mb_end(self, state: TrainerState) -> None: ...

    assert "on_mb_end is a callback of losses" in problems(Mistaken())


def test_a_hook_that_keeps_state_needs_an_explicit_name() -> None:
    class Keeping(AnHTTPHook):
        def state_dict(self) -> Mapping[str, object]:
            return {"x": 1}

    assert "it keeps state in checkpoints, so it needs its own `name`" in problems(Keeping())


def test_what_is_no_hook_is_refused() -> None:
    found = problems(AnHTTPHook, print, hook("fine"))
    assert "AnHTTPHook'> is a class; give an instance of it" in found
    assert "<built-in function print> is no Hook" in found


def test_all_problems_are_told_at_once() -> None:
    found = problems(hook("a", after=("x",), max_lag=0), hook("b", overflow="?"))
    assert found.count(";") >= 2


def test_predecessors_are_all_that_come_before_in_the_order_of_registration() -> None:
    hooks = [hook("d", after=("c", "b")), hook("c", after=("a",)), hook("b"), hook("a"), hook("e")]
    assert predecessors(hooks) == {"d": ("c", "b", "a"), "c": ("a",), "b": (), "a": (), "e": ()}


def test_predecessors_of_many_hooks_are_found_quickly() -> None:
    names = [f"h{place}" for place in range(300)]
    hooks = [hook(name, after=tuple(names[max(0, place - 20) : place])) for place, name in enumerate(names)]
    check_hooks(hooks)
    assert len(predecessors(hooks)["h299"]) == 299
