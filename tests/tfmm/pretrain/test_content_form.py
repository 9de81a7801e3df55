"""One spelling of texts, and which pictures are refused."""

import unicodedata

import hypothesis
import hypothesis.strategies as st
import pytest

from tfmm.config import SCLConfig
from tfmm.pretrain.content_form import NFKC_CASEFOLD, ContentForm, one_spelling
from tfmm.pretrain.encoders import make_encoder

SPELLINGS = [
    ("Café", "Cafe\u0301"),
    ("straße", "STRASSE"),
    ("ﬁne", "FINE"),
    ("Ａｄｉｄａｓ　１２", "adidas 12"),
    ("ΣΊΣΥΦΟΣ", "σίσυφος"),
    ("한국어", "\u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165"),
    ("ガラス", "ｶﾞﾗｽ"),
    ("ệ", "e\u0302\u0323"),
    ("❤\ufe0f mug", "❤ MUG"),
    ("soft\u00adware", "software"),
    ("½ m²", "1⁄2 m2"),
    ("soft\u200bware", "software"),
    ("\u200eRed\u200f \u202amug\u202c", "red mug"),
    ("re\u2061d m\u2066u\u2069g", "red mug"),
    ("葛\U000e0100", "葛"),
]


@pytest.fixture(scope="module")
def encoder():
    return make_encoder(SCLConfig(modality="text", dim=16))


@pytest.mark.parametrize(("one", "other"), SPELLINGS)
def test_spellings_of_one_title_have_one_vector(encoder, one, other):
    # Each alone: rows of one batch may be summed in another order, as their weights lie in memory.
    first, second = (encoder.encode(encoder.admit([text]))["vector"].numpy()[0] for text in (one, other.encode()))
    assert first @ first > 0.999
    assert first.tolist() == second.tolist()


def test_accents_and_letters_still_count():
    assert len({one_spelling(text) for text in ("cafe", "café", "cafè", "kaffee", "ガラス", "カラス")}) == 6


@hypothesis.given(st.text())
def test_spelling_is_one_for_all_forms_of_a_text(text):
    once = one_spelling(text)
    assert one_spelling(once) == once
    assert once.encode().decode() == once
    for form in ("NFC", "NFD"):
        assert one_spelling(unicodedata.normalize(form, text)) == once


def test_joiners_by_which_words_differ_stay():
    assert one_spelling("می\u200cخواهم") != one_spelling("میخواهم")


def test_invalid_bytes_are_spaces():
    assert ContentForm(text=NFKC_CASEFOLD)(b"red\xff\xfemug") == b"red  mug"
    assert ContentForm(text=NFKC_CASEFOLD)("red \udcff mug") == b"red ? mug"


def test_contents_of_other_encoders_stay_as_they_are():
    assert ContentForm()(b"Cafe\xff") == b"Cafe\xff"
    assert ContentForm()("STRASSE") == b"STRASSE"


def test_form_of_a_newer_encoder_is_refused():
    with pytest.raises(ValueError, match=r"form of texts must be 'nfkc-casefold' or ''. Received: 'nfkd'. Upgrade"):
        ContentForm(text="nfkd")
