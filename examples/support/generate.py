"""The demo's data: customer messages → JSON, made up with a fixed seed. `python examples/support/generate.py [DIR]`

    {"intent": "refund", "order": "K-4821", "customer": {"name": "Ines", "city": null},
     "items": ["2 x desk lamp"], "urgent": false}

What makes it worth learning: names, cities and products of the test are not in the training data, nor are some of
its sentences; several items in one message; a nested object; numbers, dates and people that must not be taken for the
order or the customer; fields that are not mentioned and become null. A careful person gets every row right: the intent
is what is asked for, the customer is who writes, urgent is said in words.
"""

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SYSTEM = "Turn the customer's message into JSON with intent, order, customer, items and urgent."
SIZES = {"train": 1120, "validation": 40, "test": 60}
SEED = 20261124

NAMES = {
    "train": (
        "Ines Tom Priya Marek Lucia Owen Farah Jonas Mei Oscar Ruth Diego Hanna Viktor Amara Felix Noor Greta "
        "Ivan Leila Bruno Signe Kofi Paula Emil Tara Anton Yusuf Clara Henrik Zoe Mateo Olga Samir Nadia Karl "
        "Elena Hugo Alice Benjamin Camille Daniel Esther Frank Gloria Harold Irene Jacob Katherine Leonard "
        "Margaret Nathan Olivia Patrick Rachel Simon Theresa Ulrich Vanessa Walter Xavier Yvonne Zachary Agnes "
        "Boris Cecilia Dmitry Eleanor Francis Georgia Helmut Isabel Julian Kirsten Lorenzo Miriam Norbert Ottilie "
        "Pablo Renata Sebastian Tamara Ursula Valentin Wilhelm Yasmin Aaron Beatrice Carlos Deborah Edward Fiona "
        "Gabriel Heather Isaac Joanna Kenneth Lillian Marcus Nicole Pierre Rebecca Stephen Tiffany Victoria "
        "William Adele Bjorn Carmen Derek Elise Fernando Gerard Helena Igor Janet Kevin Laura Martin Nora Oliver "
        "Penelope Raymond Sandra Timothy Veronica Wesley Anika Bertil Chiara Dorothea Erik Flavia Goran Hilda "
        "Ismail Jadwiga Kamil Lotte Milos Nina Otto Philippa Rafael Sabine Thomas Vera Wendy Yuki Zeynep Akira "
        "Brigitte Cyrus Daphne Elias Franziska Gustav Harriet Ingrid Joel Kazimir Lydia Mikhail Natalie Omar "
        "Pauline Quincy Roland Sylvia Tobias Vincent Winifred Abdul Bianca Chen Delia Ernst Florence Gilbert "
        "Hector Ilse Jerome Karin Lionel Monica Nikolai Odette Preston Rita Sergei Tatiana Uma Vivian Winston "
        "Anja Basil Cora Dennis Edna Fatima Gregor Holly Ian Josephine Kurt Lena Max Naomi Orlando Phoebe Rudolf "
        "Stella Terence Ulla Violet Wolfgang"
    ),
    "validation": "Rosa Stefan Aiko Dmitri Wanda Idris Linnea Paulo",
    "test": "Astrid Babak Celine Dario Edith Fabio Gwen Hasan Imke Jarek Keiko Lars Malika Nils Oriana Petra Quentin",
}
CITIES = {
    "train": (
        "Porto Leeds Graz Oslo Turin Ghent Malmo Cork Lyon Bonn Gdansk Bergen Seville Utrecht Brno Tampere Basel "
        "Split Madrid Vienna Dublin Hamburg Glasgow Toulouse Valencia Krakow Munich Geneva Bologna Antwerp "
        "Stockholm Helsinki Riga Vilnius Tallinn Warsaw Prague Budapest Lisbon Athens Sofia Bucharest Belgrade "
        "Ljubljana Salzburg Innsbruck Zurich Bern Strasbourg Bordeaux Lille Rennes Montpellier Grenoble Marseille "
        "Nice Genoa Verona Padua Naples Palermo Bari Catania Malaga Granada Cordoba Murcia Alicante Vigo Braga "
        "Faro Coimbra Brighton Bristol Cardiff Swansea Exeter Plymouth Norwich Cambridge Oxford York Sheffield "
        "Newcastle Aberdeen Inverness Belfast Galway Limerick Odense Aalborg Trondheim Stavanger Uppsala Lund "
        "Turku Oulu Leipzig Dresden Bremen Hanover Stuttgart Mannheim Kiel Lubeck Poznan Wroclaw Lodz Szczecin "
        "Ostrava Kosice Debrecen Szeged Linz Maribor Rijeka Osijek Sarajevo Skopje Patras Thessaloniki Varna "
        "Plovdiv Cluj Iasi Boston Denver Austin Portland Toronto Montreal Calgary Sydney Perth Nairobi Accra Lima "
        "Quito Santiago"
    ),
    "validation": "Aarhus Nantes Girona Ulm",
    "test": "Bilbao Zagreb Dundee Trieste Rostock Lugano Tartu",
}
# Every product takes a plain `s` in the plural, so a careful reader knows its name from `four bread boards`.
PRODUCTS = {
    "train": "desk lamp|water bottle|yoga mat|phone case|coffee grinder|wool hat|garden hose|picture frame|kettle|"
    "backpack|wall clock|bread board|bath towel|bike light|usb cable|rain jacket|door mat|tea pot|board game|floor rug|"
    "hand mixer|tool bag|pillow|headset|shoe rack|plant pot|office chair|mirror|notebook|toaster|camping stove|blanket",
    "validation": "paper lantern|salt mill|keyboard|winter scarf|storage basket|hair dryer",
    "test": "egg timer|bird feeder|monitor stand|leather belt|spice rack|hiking pole|night light|laundry bag|"
    "travel mug|cutting board|book stand|sewing kit|swim cap|cake tin",
}
# Most products of the training rows are put together from these two lists: copying is learned, not a catalogue.
PRODUCT_KINDS = (
    "folding steel bamboo cotton garden kitchen pocket corner velvet copper window wooden ceramic glass outdoor "
    "baby music fishing beach car school bedroom silver round magnetic solar candle pencil marble camera linen "
    "party sports travelling reading writing cooking gaming sleeping dancing climbing cycling running painting "
    "camping sailing skiing washing drying ironing gardening shopping plastic rubber metal stone golden brass "
    "iron tin clay wool silk denim nylon foam cork straw coffee tea milk bread cheese butter sugar pepper honey "
    "fruit apple lemon cherry melon onion potato rice soup salad pizza cookie dog cat horse fish rabbit chicken "
    "summer autumn spring morning evening weekend holiday christmas birthday wedding office home hotel studio "
    "attic balcony bathroom hallway cellar garage workshop desktop wall floor ceiling door roof fence gate bridge "
    "street city country forest mountain river ocean island small large mini giant double triple square oval flat "
    "tall short long wide narrow soft hard warm cool quiet heavy light dark bright white black red green purple "
    "orange yellow brown grey digital electric manual portable wireless vintage modern classic royal rustic"
)
PRODUCT_NOUNS = (
    "table basin spoon curtain ladder hammer jar bucket speaker stool drawer whistle shovel apron ribbon magnet "
    "flask charger carpet helmet tray hook sticker pan saucer puzzle broom tripod funnel cushion ruler grill "
    "lantern bottle mat hose frame clock towel kettle hat basket cover holder opener cleaner heater cooler fan "
    "filter pump brake cable adapter printer scanner screen monitor folder binder marker crayon eraser sharpener "
    "stapler vase bowl plate fork grater peeler slicer whisk jug mop sponge rug sofa armchair wardrobe cabinet "
    "desk lamp bulb plug socket wallet belt glove sock shirt jacket scarf boot slipper sandal robe tent hammock "
    "paddle net racket trophy"
)

GREETINGS = ("Hi,", "Hello,", "Good morning,", "Hey there,", "Dear team,", "Hello support,", "Hi all,", "")
INTRODUCTIONS = {
    "train": (
        "my name is {name}.",
        "this is {name}.",
        "I am {name}.",
        "{name} here.",
        "{name} writing to you.",
        "it's {name} again.",
    ),
    "test": ("you are reading a message from {name}.", "I go by {name}."),
}
INTRODUCTIONS_WITH_CITY = {
    "train": (
        "my name is {name} and I live in {city}.",
        "this is {name} from {city}.",
        "{name} here, writing from {city}.",
        "I am {name}, based in {city}.",
    ),
    "test": ("{name} from {city} is writing to you.", "I am {name} and my home is {city}."),
}
REQUESTS = {
    "refund": {
        "train": (
            "I want my money back for {items}.",
            "Please refund {items}.",
            "I sent back {items} and would like a refund.",
            "I am not happy with {items}, so give me my money back.",
            "Could you refund me for {items}?",
            "{Items} broke at once and I would like my money returned.",
        ),
        "test": ("Kindly return my payment for {items}.", "I expect a refund, since {items} never worked."),
    },
    "exchange": {
        "train": (
            "I would like to exchange {items}.",
            "Can I swap {items} for another size?",
            "Please replace {items} with a new one.",
            "{Items} came in the wrong colour, please send a replacement.",
            "I got {items} but need a different colour, can we exchange?",
        ),
        "test": ("Is it possible to exchange {items} for a larger size?", "Please swap {items} for a blue one."),
    },
    "delivery": {
        "train": (
            "Where is my parcel with {items}?",
            "I am still waiting for {items}.",
            "When will {items} arrive?",
            "{Items} should have arrived by now, where are they?",
            "The tracking page for {items} has not moved, when does it come?",
        ),
        "test": ("I wonder when {items} will be delivered.", "Has the parcel with {items} left your warehouse?"),
    },
    "cancel": {
        "train": (
            "Please cancel my order of {items}.",
            "I want to cancel {items}.",
            "I changed my mind about {items}, please cancel.",
            "Do not send {items}, I would like to cancel.",
            "Can you cancel {items} before it ships?",
        ),
        "test": ("I no longer need {items}, so cancel it.", "Kindly cancel the purchase of {items}."),
    },
    "invoice": {
        "train": (
            "I need an invoice for {items}.",
            "Please send me the invoice for {items}.",
            "Could I get a receipt with tax for {items}? I need the invoice.",
            "My accountant asks for the invoice of {items}.",
            "The invoice for {items} is missing.",
        ),
        "test": ("Would you mail me the invoice that belongs to {items}?", "I never got an invoice for {items}."),
    },
}
ORDERS = {
    "train": (
        "My order is {order}.",
        "Order number {order}.",
        "It is order {order}.",
        "The order is {order}.",
        "(order {order})",
    ),
    "test": ("You find it under order {order}.", "The number of the order is {order}."),
}
URGENT = {
    "train": (
        "This is urgent.",
        "Please hurry, I need it by tomorrow.",
        "I need this solved today!",
        "Please reply as soon as possible.",
        "It is really urgent, please be quick.",
    ),
    "test": ("Please hurry, this is urgent for me.", "I need an answer today, as soon as possible."),
}
DISTRACTIONS = {
    "train": (
        "You can call me on 555-{digits}.",
        "I bought it on {day} March.",
        "My neighbour {other} was very happy with your shop.",
        "I have been a customer for {day} years.",
        "I paid {day}.50 by card.",
        "There is no rush.",
        "The weather has been awful here.",
        "My last parcel came within {day} days.",
        "Your colleague {other} was very kind on the phone.",
        "Thanks for the nice packaging, by the way.",
        "Take your time.",
    ),
    "test": ("My phone number is 555-{digits}.", "My sister {other} told me about you.", "No need to hurry."),
}
CLOSINGS = ("Thanks!", "Best wishes", "Thank you.", "Kind regards", "Cheers", "Many thanks in advance.", "")
ONSETS = (*"bcdfghjklmnprstvwz", "st", "br", "kl", "tr", "sh", "th", "gr", "ch")
ENDINGS = ("n", "r", "s", "l", "ra", "na", "lo", "mi", "ck", "tte", "ria", "nd", "go", "berg", "ton", "", "la", "x")
_HELD = {word for words in (NAMES, CITIES) for part in ("validation", "test") for word in words[part].split()}
NUMBERS = ("", "one", "two", "three", "four", "five")


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One message being written: where its words come from."""

    random: random.Random
    part: str

    def of(self, choices: Sequence[str]) -> str:
        return self.random.choice(choices)

    def sentence(self, sentences: dict[str, tuple[str, ...]]) -> str:
        """In the test half of the sentences are ones that training never shows."""
        unseen = self.part == "test" and self.random.random() < 0.5
        return self.of(sentences["test" if unseen else "train"])

    def proper(self, words: dict[str, str]) -> str:
        """A name or a city. Some of those in training are made up, so that copying is learned and not a list."""
        if self.part != "train" or self.chance(0.75):
            return self.of(words[self.part].split())
        while (made := self._made_up()) in _HELD:
            pass
        return made

    def _made_up(self) -> str:
        syllables = [self.of(ONSETS) + self.of("aeiouy") for _ in range(self.random.choice((1, 2, 2, 3)))]
        return "".join((*syllables, self.of(ENDINGS))).capitalize()

    def products(self) -> list[str]:
        """One to three different ones; most of those in training are put together from two words."""
        count = self.random.choices((1, 2, 3), (5, 4, 1))[0]
        listed = self.random.sample(PRODUCTS[self.part].split("|"), count)
        if self.part != "train":
            return listed
        made = (f"{kind} {self.of(PRODUCT_NOUNS.split())}" for kind in self.random.sample(PRODUCT_KINDS.split(), count))
        return [product if self.chance(0.15) else other for product, other in zip(listed, made, strict=True)]

    def chance(self, share: float) -> bool:
        return self.random.random() < share


def row(draw: Draw) -> dict[str, object]:
    name, city = draw.proper(NAMES), draw.proper(CITIES) if draw.chance(0.4) else None
    order = f"{draw.of('ABDEFGHKLMNPRST')}-{draw.random.randrange(1000, 10000)}" if draw.chance(0.75) else None
    items = [(draw.random.choices((1, 2, 3, 4, 5), (6, 3, 2, 1, 1))[0], product) for product in draw.products()]
    intent, urgent = draw.of(tuple(REQUESTS)), draw.chance(0.3)
    answer = {
        "intent": intent,
        "order": order,
        "customer": {"name": name, "city": city},
        "items": [f"{count} x {product}" for count, product in items],
        "urgent": urgent,
    }
    message = _message(draw, answer, items)
    turns = (("system", SYSTEM), ("user", message), ("assistant", json.dumps(answer)))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _message(draw: Draw, answer: dict, items: Sequence[tuple[int, str]]) -> str:
    customer = answer["customer"]
    introduction = draw.sentence(INTRODUCTIONS_WITH_CITY if customer["city"] else INTRODUCTIONS).format(**customer)
    listed = _listed(draw, items)
    body = [draw.sentence(REQUESTS[answer["intent"]]).format(items=listed, Items=listed[0].upper() + listed[1:])]
    if answer["order"]:
        body.append(draw.sentence(ORDERS).format(order=answer["order"]))
    if answer["urgent"]:
        body.append(draw.sentence(URGENT))
    for _ in range(draw.random.choices((0, 1, 2), (4, 4, 1))[0]):
        body.append(_distraction(draw, answer))
    head, rest = body[0], body[1:]
    draw.random.shuffle(rest)
    greeting = draw.of(GREETINGS)
    opening = f"{greeting} {introduction}" if greeting else introduction[0].upper() + introduction[1:]
    text = " ".join(part for part in (opening, head, *rest, draw.of(CLOSINGS)) if part)
    return text.replace("!", ".").replace("I am", "i am") if draw.chance(0.1) else text


def _listed(draw: Draw, items: Sequence[tuple[int, str]]) -> str:
    """`the kettle, two pillows and 3x desk lamp`; the answer has the product's own name and a number."""
    words = []
    for count, product in items:
        if count == 1:
            words.append(f"{draw.of(('the', 'my', 'one'))} {product}")
        elif draw.chance(0.3):
            words.append(f"{count}x {product}")
        else:
            words.append(f"{NUMBERS[count]} {product}s")
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _distraction(draw: Draw, answer: dict) -> str:
    calm = ("There is no rush.", "Take your time.", "No need to hurry.")
    while (sentence := draw.sentence(DISTRACTIONS)) in calm and answer["urgent"]:
        pass
    other = draw.proper(NAMES)
    while other == answer["customer"]["name"]:
        other = draw.proper(NAMES)
    return sentence.format(digits=f"{draw.random.randrange(10000):04}", day=draw.random.randrange(2, 29), other=other)


def rows(part: str) -> list[dict[str, object]]:
    """All rows of a part, no two with the same message."""
    draw = Draw(random=random.Random(f"{SEED} {part}"), part=part)
    made: dict[str, dict[str, object]] = {}
    while len(made) < SIZES[part]:
        one = row(draw)
        made.setdefault(json.dumps(one), one)
    return list(made.values())


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part in SIZES:
        text = "".join(json.dumps(one) + "\n" for one in rows(part))
        (folder / f"{part}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "src/lorawise/cli/support")
