"""Words that change next to nothing in a picture, put into its caption, so that a model learns to look past them.

People type "a big cat with a long tail" where every caption says "a cat". A model that has read captions alone takes
the words that it has never seen for part of what is asked for.

Reference: Wei and Zou 2019 (arXiv:1901.11196), random insertion; of words that say little, not of synonyms.
"""

import random

ADJECTIVES = (  # one of them before the thing
    "amazing average awesome big bright brilliant charming classic clean clear colorful colourful common cool "
    "delightful detailed elegant enormous everyday excellent familiar famous fancy fantastic fine fresh friendly "
    "funny gentle giant gigantic good gorgeous graceful grand great handsome healthy huge little lone lonely "
    "lovely magnificent marvellous mighty mini modern natural neat nice normal ordinary perfect plain pleasant "
    "pretty proper quaint quick quiet real regular royal rustic shiny silly single slow smooth soft solid "
    "splendid standard strange strong stylish super sweet tasty tidy tiny traditional typical unusual useful "
    "usual vintage wonderful"
).split()
COLOURS = "black blue brown gray green grey orange pink purple red teal white yellow golden silver".split()
LOOKS = "big bright broad dark fine fluffy large little long open pointed round sharp short small soft tiny".split()
PARTS = (  # what a thing has, whether it shows or not
    "arms back bark beak belly blossoms body border bottom bow branch bricks bumps buttons cap cheeks chimney "
    "claws collar corners cover crumbs dots door doors ears edges engine eyes feathers feet fins fingers frame "
    "fruit fur grass hair handle hands hat head hooks icing jacket juice leaves legs lid lights line lines logo "
    "mane mark mouth page pages paint pattern paws petals pocket pockets roots rope scarf screen seeds shadow "
    "shell shoes sides skin sleeves smile spikes sticker straps string sugar surface tail teeth thorns tip trunk "
    "wheels whiskers window windows wings wood"
).split()
ODD = "feet fur hair icing juice teeth wood".split()  # plurals without an s, and what is not counted
SEVERAL = [part for part in PARTS if part.endswith("s") or part in ODD]  # parts without an article
PLACES = (
    "air autumn bag band bar barn basket beach bed bedroom bowl box bush cafe camp car cave class classroom "
    "corner country dark desert distance evening factory farm fence field fire forest garage garden gym hall "
    "harbour heat hill home hospital hotel house jungle kitchen lake land library light market meadow middle "
    "moonlight morning mountains museum night ocean office park pond pool rain river road room school shade shed "
    "shelf shop snow spring stadium station stones storm store street summer sun table theatre town tree tunnel "
    "valley village wall water weather wild wind window winter woods world yard zoo"
).split()
BEFORE_PLACES = "above at behind beside by from in inside near on outside over under".split()
RECEIVERS = (  # whom or what a thing is for
    "baby boy brother child class collector couple dad dancer dog doctor driver family farmer friend "
    "gardener girl grandpa guest horse king lady man mom mother neighbour player prince "
    "pupil sailor singer sister soldier student teacher team tourist traveller winner woman worker birthday "
    "breakfast christmas dinner exam game holiday lesson lunch meal party picnic race show test trip vacation "
    "walk wedding weekend"
).split()
DOINGS = (
    "being used, being shown, doing its work, falling down, floating, getting ready, going away, going home, "
    "hanging there, having fun, in action, in motion, just like that, looking around, lying there, moving, on its "
    "own, on sale, opening, resting, seen from above, seen from the front, seen from the side, shining, shown up "
    "close, sitting there, standing alone, standing still, that is new, that looks nice, that stands out, turning "
    "around, up close, waiting, which is ready, working, all over, at last, at rest, one of many, of its kind, of "
    "today, to look at"
).split(", ")
THINGS = (  # what something else is with, made of, or busy with
    "apple ball balloon banana basket bell bird boat book bottle bread brush bucket cake camera candle car cat chair "
    "cheese cherry clock cloud coin cookie crown cup dog drum egg fan feather fish flag flower fork glass glove guitar "
    "hammer heart horse key kite knife ladder lamp leaf lemon letter lock map medal melon moon mouse mushroom nail "
    "needle onion paper pen phone pipe plane plate rabbit ribbon ring rocket rose saw ship sign snake spoon star stone "
    "sword tent ticket tie tomato towel trumpet umbrella vase violin watch whistle"
).split()
SPOTS = (  # where on a thing its part is
    "on top, at the bottom, in the middle, at the front, at the back, on it, on both sides, all around, inside, "
    "underneath"
).split(", ")
BUSY_WITH = "with with for for carrying guarding holding selling showing watching".split()  # the first ones more often
FRAMES = (
    "this is {}, here is {}, i want {}, i would like {}, draw {}, draw me {}, make {}, show me {}, please draw "
    "{}, a picture of {}, a drawing of {}, an image of {}, a photo of {}, an icon of {}, an emoji of {}, a sketch "
    "of {}, a painting of {}, a sign for {}, a symbol for {}, the look of {}, give me {}, one of {}, just {}, "
    "only {}, simply {}"
).split(", ")
ARTICLES = ("a", "an", "the")
SAID_YOU = "us"  # the beginning of "useful", which is said like a consonant


def add_filler(draw: random.Random, caption: str) -> str:
    """A caption with words around its thing that say nothing of it; what follows a comma, as a style, stays last.

    Args:
        draw: decides on the words.
        caption: such as "a cat, flat emoji".
    """
    thing, comma, style = caption.partition(",")
    kinds = draw.choice((("adjective",), ("ending",), ("adjective", "ending"), ("frame",), ("frame", "ending")))
    if "adjective" in kinds:
        thing = with_adjective(thing, draw.choice(draw.choice((ADJECTIVES, ADJECTIVES, PLACES, RECEIVERS))))
    if "ending" in kinds:
        thing = f"{thing} {draw_ending(draw)}"
    if "frame" in kinds:
        thing = draw.choice(FRAMES).format(thing)
    return f"{thing}{comma}{style}"


def with_adjective(thing: str, adjective: str) -> str:
    """`adjective` before everything but the article, which is made to fit it."""
    first, _, rest = thing.partition(" ")
    if first not in ARTICLES or not rest:
        return f"{adjective} {thing}"
    return f"{first if first == 'the' else article(adjective)} {adjective} {rest}"


def draw_ending(draw: random.Random) -> str:
    """What comes after a thing: a part of it, a place, whom it is for, what it does, or what it has to do with."""
    look, part, other = draw.choice(draw.choice((COLOURS, LOOKS, ("",)))), draw.choice(PARTS), draw.choice(THINGS)
    named = " ".join(filter(None, (look, draw.choice(("", "", other)), part)))
    spot = draw.choice(("", "", f" {draw.choice(SPOTS)}"))
    more = draw.choice(("", "", f" and {draw.choice((*COLOURS, *LOOKS))} {draw.choice(SEVERAL)}"))
    with_part = f"with {named if part in SEVERAL else f'{article(named)} {named}'}{spot or more}"
    before, known = draw.choice(BEFORE_PLACES), draw.choice((False, True))
    place = " ".join(filter(None, (draw.choice(("", "", look)), draw.choice(PLACES))))
    at_place = f"{before} {'the' if known else article(place)} {place}"
    receiver = draw.choice(RECEIVERS)
    for_someone = f"for {draw.choice((article(receiver), 'the', 'my', 'your'))} {receiver}"
    seen = " ".join(filter(None, (look, other)))
    busy = f"{draw.choice(BUSY_WITH)} {article(seen)} {seen}"
    return draw.choice((with_part, with_part, at_place, at_place, for_someone, draw.choice(DOINGS), busy))


def article(word: str) -> str:
    """The indefinite article of a word."""
    return "an" if word[0] in "aeiou" and not word.startswith(SAID_YOU) else "a"
