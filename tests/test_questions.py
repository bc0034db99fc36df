"""What is asked and what is told, in any language."""

from __future__ import annotations

import pytest
from languages import LANGUAGES

from memfactory.common.questions import is_question

ASKED = [
    "where do I live?", "where do I live ?  ", "where do I live? 😀", "“where do I live?”", "(where do I live?)",
    "where do I live?!", "really?..",
    "where do I live? thanks", "Where do I live? Thank you, Bob!", "我住在哪里？谢谢", "city alice ?", "?", "？",
    "where do I live?\u200b", "where do I live? ❤️",
    "我住在哪里？", "我住在哪里", "你喜欢猫吗", "我的猫呢", "我叫什么名字", "谁是我的老师", "我妹妹多少岁", "أين أسكن؟",
    "أين أسكن", "هل عندي قطة", "ما اسم كلبي",
    "Πού μένω;", "Πού μένω\u037e", "πού μένω", "どこに住んでいますか", "私の猫の名前は何ですか。", "誕生日はいつでしたっけ",
    "何が好きなの", "어디에 살아요", "내 이름이 뭐예요", "저는 어디에 사나요",
    "मैं कहाँ रहता हूँ", "क्या मेरे पास बिल्ली है", "ฉันอยู่ที่ไหน", "ฉันชอบกินอะไรครับ", "где я живу", "Живу ли я в Москве",
    "Как зовут мою собаку", "¿dónde vivo", "dónde vivo",
    "wo wohne ich", "où est mon chat", "benim kedim var mı", "tôi sống ở đâu", "որտե՞ղ", "what is my dog called",
    "Who's my doctor", "do I have a dog",
    "how old is Bob", "can you tell me where I live", "is my dog black", "האם יש לי חתול",
]  # fmt: skip
TOLD = [
    "I live in Paris.", "Guess what? I moved to Rome.", "You know what? I quit.", "She asked: where? Then she left.",
    "What I like is jazz", "When I was young I sang",
    "When I was young, I lived in Paris", "Where I live it rains", "Will Smith is my friend", "Have a nice day",
    "can you remember that I like jazz", "I like what is new",
    "What a day!", "Who cares!", "我不知道他叫什么", "你知道吗，我搬家了", "我住在北京", "他正在睡觉呢，我在看书",
    "我搬到了罗马。", "私は東京に住んでいます", "いか", "何でも好きです",
    "저는 서울에 살아요", "누구나 그를 좋아해요", "바쁘니까", "أنا أسكن في القاهرة", "मैं दिल्ली में रहता हूँ",
    "मुझे नहीं पता कि वह कहाँ है", "ฉันอยู่กรุงเทพ", "ฉันไม่รู้ว่าเขาชื่ออะไร",
    "Я живу в Москве", "Когда я был молод, я жил в Твери", "a; b", "x = 1;", "", " ", "😀", "the url is http://x.y/?a=b",
    "Ich wohne in Berlin", "Vivo en Roma", "city alice paris .",
]  # fmt: skip


@pytest.mark.parametrize("line", ASKED)
def test_what_is_asked(line: str) -> None:
    assert is_question(line)


@pytest.mark.parametrize("line", TOLD)
def test_what_is_told(line: str) -> None:
    assert not is_question(line)


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_questions_and_facts_of_every_language(name: str) -> None:
    language = LANGUAGES[name]
    assert [line for line in language.questions() if not is_question(line)] == []
    assert [line for line in language.facts() if is_question(line)] == []
    bare = [question.rstrip("?？؟") for question in language.questions()]
    assert sum(map(is_question, bare)) >= 80, "most of them without their mark too"
