"""Names of what scenes show: 200 emoji, garments, words to read, colors of charts."""

import unicodedata

#: Emoji by the one word of their Unicode name; chosen to look unlike one another.
EMOJI = tuple(
    """
    hourglass keyboard umbrella snowman comet shamrock anchor alembic coffin baseball church fountain sailboat tent
    airplane envelope pencil snowflake cyclone rainbow volcano thermometer taco chestnut cactus tulip rose hibiscus
    sunflower mushroom tomato aubergine grapes watermelon tangerine lemon banana pineapple pear cherries strawberry
    hamburger spaghetti bread oden sushi doughnut cookie candy lollipop popcorn ribbon balloon microphone headphone
    ticket billiards bowling saxophone guitar trumpet violin trophy stadium hotel factory amphora rat mouse ox cow tiger
    leopard rabbit cat dragon crocodile whale snail snake horse ram goat sheep monkey rooster chicken dog pig elephant
    octopus bug ant honeybee blowfish turtle penguin koala poodle dolphin chipmunk eyes ear nose tongue crown eyeglasses
    necktie kimono bikini princess skull guardsman lipstick syringe pill ring bouquet bomb droplet seat
    briefcase minidisc calendar clipboard pushpin books package postbox newspaper camera television radio key lock bell
    wrench hammer pistol microscope telescope candle spider joystick printer trackball rocket helicopter ambulance
    tractor monorail rowboat bicycle door toilet bathtub shield satellite scooter canoe skateboard spoon croissant
    avocado cucumber bacon carrot pancakes dumpling coconut broccoli pretzel sandwich mango crab scorpion turkey eagle
    duck bat shark owl butterfly gorilla lizard rhinoceros shrimp squid hedgehog kangaroo llama peacock hippopotamus
    parrot raccoon lobster swan mammoth sloth flamingo
    """.split()
)
#: Garments that are told apart, and the words of `load_fashion_mnist` for them.
GARMENTS = {"trousers": "trouser", "pullover": "pullover", "sandal": "sandal", "bag": "bag", "boot": "boot"}
WORDS = tuple(
    """
    stop exit open sale park gate shop milk salt wine beer cake book news post bank bus port lake hill road king star
    sun moon tea bar zoo gym spa inn map pub oil gas fire taxi city farm club
    """.split()
)
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
COLORS = {
    "red": (214, 39, 40), "blue": (31, 90, 200), "green": (30, 150, 60), "yellow": (250, 205, 40),
    "purple": (140, 60, 180), "black": (25, 25, 25),
}  # fmt: skip
TEXT_KINDS = ("word", "number")
CHARTS = ("bars", "pie")
NAMED = (*EMOJI, *GARMENTS)


def character(name: str) -> str:
    """The emoji of this name."""
    return unicodedata.lookup(name.upper())
