"""Whether a line asks or tells, in any language: by its question mark, or where none is written by how questions are built.

Conservative: what is not surely a question is told. An application has words that say which of the two is meant.
"""

from __future__ import annotations

import re
import unicodedata

MARKS = "?？؟\u037e⁇⁈⁉‽⸮︖﹖՞፧꘏꛷⳺⳻"
"""Question marks of all scripts; of Greek the one that looks like a semicolon."""

_COURTESY = (
    "thanks|thank you|thx|ty|please|pls|cheers|just curious|谢谢|謝謝|多谢|ありがとう|お願いします|감사합니다|고마워|gracias|"
    "por favor|merci|"
    "s'il (?:te|vous) pla[iî]t|danke|bitte|grazie|per favore|obrigad[oa]|спасибо|пожалуйста|شكرا|من فضلك|धन्यवाद|ขอบคุณ|cảm ơn|"
    "teşekkürler|ευχαριστώ"
)
_THANKS = re.compile(rf"\W*(?:{_COURTESY})\b[^.!{re.escape(MARKS)}]{{0,30}}\W*", re.IGNORECASE)
_LISTED = (
    # English: a question word with its verb, or a verb before its subject. `What I like is jazz` and `Will Smith is here` are neither.
    r"(?:and |so |but )?(?:wh(?:at|o|ere|en|y|ich|ose|om)|how)(?:'?s|'?re| (?:is|are|was|were|do|does|did|can|could|will|would|"
    r"should|has|have|had|am))"
    r"\b(?!.*\b(?:is|was|are|were)\b.*\b(?:to me|for me)\b)[^,]*",
    r"how (?:old|many|much|long|far|often|tall|big|late)\b[^,]*\b(?:is|are|was|were|do|does|did|has|have|had|can)\b[^,]*",
    r"(?:in|at|on|from|for|with|to|of) (?:which|what|whom)\b[^,]*",
    r"(?:do|did|am|have|had|was|is|are|were) (?:i|he|she|they|we|my|his|her|their|our)\b[^,]*",
    r"(?:do|can|could) you (?:know|remember|recall|tell me) (?:what|where|who|when|why|how|which|if|whether)\b.*",
    # Chinese
    r".*(?:[吗嗎]|(?<![什怎那这這多])[么麼])[啊呀呢]?", r"(?!.*(?:不知道|知道|告诉|不管|无论|任何)).*(?:什么|什麼|谁|誰|哪里|哪裡|"
    r"哪儿|哪个|哪個|多少|几点|幾點|几岁|幾歲|怎么样|怎麼樣|为什么|為什麼)[岁歲钱錢个個]?",
    r"(?!.*(?:不知道|知道|告诉|不管|无论)).*(?:什么|什麼|谁|誰|哪|几|幾|怎么|怎麼|多少).*呢", r"\w{1,6}呢",
    r"(?!.*(?:知道|告诉|不管|无论))(?:谁|誰|为什么|為什麼|怎么|怎麼|哪|什么时候|什麼時候)[^，,。]*", r"[^，,。]*(?:住在|是|在|叫|做|"
    r"养|喜欢|有)(?:哪|什么|什麼|谁|誰|几|幾)\w{1,7}",
    # Japanese
    r".*(?:です|ます|でした|ました|ません|でしょう)か(?:ね|な)?", r".*(?:です|でした|ました|だ|だった)っけ", r"(?!.*(?:知らない|"
    r"わからない|分からない)).*(?:誰|何|どこ|いつ|なぜ|どう|どれ|どの|いくつ|いくら).*(?:の|か|かな|だっけ)",
    # Korean
    r".*(?:나요|까요|는가요|은가요|인가요|던가요|는지요|습니까|입니까|합니까|됩니까|갑니까|옵니까)",
    r"(?!.*(?:나요|누구나|뭐든|언제나|어디나)).*(?:어디|누구|언제|무엇|무슨|뭐|몇|왜|어떤|얼마)\S*(?: \S+){0,3}(?:요|니|냐|지|죠|까)",
    # Arabic and Persian; a vowel point or a kind of alef does not matter
    r"(?:و)?(?:هل|اين|متي|كم|لماذا|كيف|ماذا|من هو|من هي|ما هو|ما هي|ما اسم|اي|في اي|مع من|آیا|ايا|کجا|چه کسی) .*",
    # Hindi
    r"(?!.*(?: कि |नहीं पता|मालूम नहीं)).*(?:क्या|कहाँ|कहां|कौन|कब|क्यों|कैसे|कितन[ाीे]|किस|किसक[ाीे]|किसे).*(?:है|हैं|हूँ|हूं|था|"
    r"थी|थे|हो|गा|गी|गे)",
    # Thai
    r"(?!.*(?:ไม่รู้|ไม่ทราบ)).*(?:ไหม|มั้ย|หรือเปล่า|หรือไม่|หรือยัง|ที่ไหน|อะไร|ใคร|เมื่อไหร่|เมื่อไร|ทำไม|อย่างไร|ยังไง|เท่าไหร่|"
    r"เท่าไร|เดือนไหน|คนไหน)(?:ครับ|ค่ะ|คะ|นะ)*",
    # Russian, Ukrainian: a clause after a comma would make it `Когда я был молод, ...`
    r"(?:а |и |но )?(?:где|кто|куда|откуда|когда|почему|зачем|сколько|кем|чем|что|чей|чья|какой|какая|какое|какие|как зовут|де|хто|"
    r"коли|чому|скільки) [^,—]*",
    r"[^,]*\w+ ли \w+[^,]*",
    # Spanish, French, German, Italian, Portuguese, Turkish, Vietnamese, Hebrew, Greek
    r"¿.*", r"(?:est-ce qu|qu'est-ce qu|où (?:est|habit|vi)|qui (?:est|a)\b|quel(?:le)?s? (?:est|sont)|comment (?:s'appelle|va)|"
    r"combien (?:de|d')).*",
    r"(?:wo|wer|wann|warum|wie|was|welche[rsn]?|wohin|woher) (?:ist|sind|war|waren|hat|habe|haben|wohn\w*|heiß\w*|arbeit\w*|viele?|"
    r"lebt|lebe|mag|macht)\b[^,]*",
    r"(?:dove|chi|quando|perché|come|cosa|quale|onde|quem|qual|quantos) (?:è|e|é|si|abit\w*|viv\w*|mor\w*|ha|tem|sono|está)\b[^,]*",
    r"(?:dónde|quién|cuándo|cuál|cuántos?|qué|cómo) [^,]*", r".*\bm[ıiuü](?:yım|yim|sın|sin|yız|yiz|sınız|siniz)?", r"(?:kim|nerede|"
    r"ne zaman|neden) [^,]*",
    r".*(?:phải không|có [^,]* không|bao nhiêu|ở đâu|là gì|là ai|khi nào|bao giờ)", r"(?:האם|איפה|מתי|למה|מי זה|מה שם) .*",
    r"(?:πού|ποιος|ποια|πότε|γιατί|πόσ\w+) [^,]*",
)  # fmt: skip
_BUILT = re.compile("|".join(f"(?:{form})" for form in _LISTED), re.IGNORECASE)
_LONGEST = 200
"""Characters of a question that is known by its build alone."""
_POINTS = re.compile("[\u0610-\u061a\u064b-\u065f\u0670\u0640]")
_ALEF = str.maketrans("أإآى", "اااي")


def is_question(text: str) -> bool:
    """True if the line asks: it ends in a question mark, whatever is behind that but words; or it is built like a question."""
    line = "".join(c for c in text if unicodedata.category(c) != "Cf" and c != "\ufe0f").strip()
    words_end = max((at + 1 for at, c in enumerate(line) if unicodedata.category(c)[0] in "LNM"), default=0)
    ending = line[words_end:]
    if not words_end:
        return any(mark in line for mark in MARKS)
    greek = ";" in ending and any("GREEK" in unicodedata.name(c, "") for c in line)
    if greek or "՞" in line or any(mark in ending for mark in MARKS):
        return True
    last = max((line.rfind(mark, 0, words_end) for mark in MARKS), default=-1)
    if last >= 0:  # words stand behind the last mark: thanks, or what is told after `Guess what?`
        return _THANKS.fullmatch(line[last + 1 :]) is not None
    if len(line) > _LONGEST or "\n" in line or re.search(r"[.!。！।]\s*\w", line):
        return False
    plain = _POINTS.sub("", unicodedata.normalize("NFC", line[:words_end])).replace("’", "'")
    if ending.strip() and any(c in "!！…" for c in ending):
        return False
    return any(_BUILT.fullmatch(form.lstrip(" \"'«“„「『(")) is not None for form in {plain, plain.translate(_ALEF)})
