"""What stands between prompt and target: the rule, row by row, and that the joint tokens decide what the target is."""

from __future__ import annotations

import pytest
import torch
from tiny_lm import make_lm

from editlab.errors import RequestError
from editlab.evaluation.questions import asked
from editlab.evaluation.scorer import force, score_facts
from editlab.facts import Fact
from editlab.joining import Joint, join, joint
from editlab.lm import LM
from editlab.rows import rewrite_row, target_ids

SPACE, NONE = Joint(" "), Joint("")
UNSURE_SPACE, UNSURE_NONE = Joint(" ", is_sure=False), Joint("", is_sure=False)
TABLE = [
    ("The capital of France is", "Paris", SPACE),
    ("日本的首都是", "东京", NONE),
    ("เมืองหลวงของญี่ปุ่นคือ", "โตเกียว", NONE),
    ("한국의 수도는", "서울", SPACE),
    ("She paid $", "50", NONE),
    ("She paid 50 €", "for it", SPACE),
    ("It costs US$", "50", NONE),
    ("The pre-", "war", NONE),
    ("The result -", "nothing", SPACE),
    ('He said "', "Hello", NONE),
    ("He said “", "Hello", NONE),
    ('He said "no"', "and left", SPACE),
    ("Born in (", "Paris", NONE),
    ("Python由", "Guido", UNSURE_NONE),
    ("Er sagte: „", "Ja", NONE),
    ("The dogs'", "owner", SPACE),
    ("Version 3", "5", UNSURE_SPACE),
    ("It was Mary", "'s book", NONE),
    # Beyond the table: its rules where they meet.
    ('The old name of the film is "', "Amadeus", NONE),
    ('("', "Hello", NONE),
    ("Paris is the capital", ", and", NONE),
    ("The share is 50", "%", NONE),
    ("The framework is", ".NET", UNSURE_NONE),
    ("The language that Microsoft made is C#", "and", SPACE),
    ("首都：", "Paris", NONE),
    ("The Japanese word for cat is", "ネコ", UNSURE_NONE),
    ("日本の首都は", "Tokyo", UNSURE_NONE),
    ("Answer:\n", "Rome", NONE),
    ("Answer:\u3000", "Rome", NONE),
    ("The capital of France is", "\tParis", NONE),
    ("日本的首都是", " Tokyo", NONE),
    ("", "Paris", NONE),
]


@pytest.mark.parametrize(("prompt", "target", "between"), TABLE)
def test_the_rule(prompt: str, target: str, between: Joint) -> None:
    assert joint(prompt, target) == between
    assert joint(f"{prompt} ", target) == between  # a plain space at a prompt's end says nothing
    assert "".join(join(prompt, target)) == prompt + between.between + target


def test_what_is_given_goes_before_the_rule() -> None:
    assert join("The capital of France is ", " Paris ", "space") == ("The capital of France is", " Paris")
    assert join("The capital of France is ", "Paris ", "none") == ("The capital of France is", "Paris")
    assert join("x = ", "  1 ", "as-written") == ("x = ", "  1 ")


@pytest.mark.parametrize("row", TABLE[:18])
def test_a_fact_settles_it_once_and_keeps_it(row: tuple[str, str, Joint]) -> None:
    prompt, target, between = row
    fact = Fact(prompt=f"{{}}: {prompt} ", subject="x", target_new=target)
    assert fact.target_prefix == between.prefix
    assert fact.target_prefix_by == ("rule" if between.is_sure else "unsure")
    assert Fact.model_validate(fact.model_dump(mode="json")) == fact
    assert Fact.model_validate_json(fact.model_dump_json(exclude_defaults=True)) == fact


def test_what_the_rule_says_again_does_not_clutter_a_file_and_what_was_given_is_in_it() -> None:
    plain = Fact(prompt="{} is", subject="x", target_new="y")
    assert set(plain.model_dump(exclude_defaults=True)) == {"prompt", "subject", "target_new"}
    given = Fact(prompt="{} is", subject="x", target_new="y", target_prefix="none")
    assert given.model_dump(exclude_defaults=True)["target_prefix"] == "none"


def test_old_facts_mean_what_they_meant() -> None:
    fact = Fact(prompt="The capital of {} is ", subject="France", target_new=" Rome ", target_true="\nParis"[1:])
    assert (fact.prompt, fact.target_new, fact.target_true) == ("The capital of {} is", "Rome", "Paris")
    assert (fact.target_prefix, fact.target_prefix_by) == ("space", "rule")


def test_a_targets_own_leading_space_counts() -> None:
    fact = Fact(prompt="{}的首都是", subject="日本", target_new=" Tokyo")
    assert fact.statement(fact.text, fact.target_new) == "日本的首都是 Tokyo"
    pre = Fact(prompt="{}: The pre-", subject="x", target_new=" war")
    assert pre.statement(pre.text, pre.target_new) == "x: The pre- war"


def test_trailing_spaces_are_left_out_of_every_prompt() -> None:
    question = {"prompt": "Q ", "answers": ["a"]}
    lists = {n: ["p ", "q\n"] for n in ("paraphrases", "attributes", "generation_prompts")}
    row = {"prompt": "{} is ", "subject": "x", "target_new": "y", "locality": [question], "portability": [question]}
    fact = Fact.model_validate(row | lists)
    assert fact.prompt == "{} is" and fact.locality[0].prompt == fact.portability[0].prompt == "Q"
    assert all(getattr(fact, name) == ("p", "q\n") for name in lists)
    written = Fact.model_validate(row | lists | {"target_prefix": "as-written"})
    assert written.prompt == "{} is " and written.locality[0].prompt == "Q " and written.paraphrases == ("p ", "q\n")


def test_what_was_given_holds_for_all_prompts_and_the_rule_for_each_by_itself() -> None:
    row = {"prompt": "{} is", "subject": "x", "target_new": "war", "paraphrases": ["The pre-"]}
    by_rule, given = Fact(**row), Fact(**row, target_prefix="space")
    assert [by_rule.statement(p, "war") for p in (by_rule.text, *by_rule.paraphrases)] == ["x is war", "The pre-war"]
    assert given.statement("The pre-", "war") == "The pre- war"
    # A rule that is not sure follows the model's choice for the fact.
    unsure = Fact(prompt="{} 3", subject="Version", target_new="5", target_prefix="none", target_prefix_by="model")
    assert unsure.statement("Release 3", "7") == "Release 37" and unsure.statement("Release is", "7") == "Release is 7"
    assert unsure.with_prompt("{} is").target_prefix == "space"
    assert unsure.with_prompt("{} 4").target_prefix == "none"


def test_a_fact_behind_another_prompt_is_settled_anew() -> None:
    fact = Fact(prompt="{} is", subject="Mary", target_new="war")
    assert fact.with_prompt("{}: the pre-").target_prefix == "none"
    assert fact.with_prompt("{} has").target_prefix == "space"
    given = Fact(prompt="{} is", subject="Mary", target_new="war", target_prefix="none")
    assert given.with_prompt("{} has").target_prefix == "none"


@pytest.fixture(scope="module")
def lm() -> LM:
    return make_lm("llama")


def total(lm: LM, ids: list[int], cut: int) -> float:
    """Mean negative log-likelihood of `ids` from `cut` on, by plain transformers."""
    with torch.no_grad():
        log_p = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -sum(float(log_p[i - 1, ids[i]]) for i in range(cut, len(ids))) / (len(ids) - cut)


@pytest.mark.parametrize(("prompt", "target", "between"), TABLE[:18])
def test_scores_are_those_of_the_joint_text(lm: LM, prompt: str, target: str, between: Joint) -> None:
    ids = lm.tokenizer(prompt + between.between + target)["input_ids"]
    cut = len(lm.tokenizer(prompt)["input_ids"])
    (forced,) = force(lm, [(prompt, target)])
    assert list(forced.target) == ids[cut:]
    assert forced.nll == pytest.approx(total(lm, ids, cut), abs=1e-5)


def test_joint_tokens_decide_which_are_the_targets(lm: LM) -> None:
    whole = lm.tokenizer("say the")["input_ids"]  # " the" is one token, which takes the prompt's last letter with it
    prompt, target = target_ids(lm, "say t", "he", "none", sink=False)
    assert prompt + target == whole and lm.tokenizer.decode(target) == " the"
    (forced,) = force(lm, [("say t", "he", "none")])
    assert forced.nll == pytest.approx(total(lm, whole, len(prompt)), abs=1e-5)


def test_edit_and_evaluation_see_the_same_tokens(lm: LM) -> None:
    for fact in (
        Fact(prompt="{}的首都是", subject="日本", target_new="东京", target_true="巴黎"),
        Fact(prompt="{} paid $", subject="She", target_new="50", target_true="thanks"),
        Fact(prompt="{} is", subject="x", target_new="y", target_prefix="none"),
        Fact(prompt="{} = ", subject="x", target_new="y", target_prefix="as-written"),
    ):
        row = rewrite_row(lm, fact, sink=False)
        assert [*row.ids, row.targets[-1]] == lm.tokenizer(fact.statement(fact.text, fact.target_new))["input_ids"]
        (scored,) = score_facts(lm, [fact])
        assert scored[0].forced["new"].target == row.targets
        (check,) = [q for q in asked([fact], ["fact_check"]) if q.name == "new"]
        assert fact.statement(fact.text, fact.target_new) in check.prompt
        assert check.prompt.endswith("is") and not check.prefixes  # "true" follows words of ours


def test_a_subject_that_melts_into_the_target_is_refused(lm: LM) -> None:
    fact = Fact(prompt="say {}", subject="t", target_new="he", target_prefix="none")
    with pytest.raises(RequestError, match="joins 't' and 'he' to one token"):
        rewrite_row(lm, fact, sink=False)


@pytest.mark.model
def test_numbers_of_the_default_model() -> None:
    lm = LM.from_pretrained()
    pairs = [("日本的首都是", "东京"), ('The old name of the film is "', "Amadeus"), ("She paid $", "50")]
    pairs += [("The pre-", "war"), ("The capital of France is ", "Paris")]
    found = [forced.nll for forced in force(lm, pairs)]
    assert found == pytest.approx([2.433, 4.252, 1.652, 2.902, 0.258], abs=2e-3)  # by transformers alone
