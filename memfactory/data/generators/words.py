"""Plain English words: the adjectives and nouns that keys, lists and generated prose are made of. Knows no task.

A module and not a data file, so that every way of installing the package brings them. Written for this project.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

ADJECTIVES: tuple[str, ...] = tuple(
    """
able absent active actual agile alert alien alive ample ancient angry annual arctic arid ashen atomic august autumn average awake aware
azure bald bare basic beige bitter blank bleak blind blond bold boring bouncy brave brief bright brisk broad bronze brown bulky busy
calm candid careful carved casual central cheap cheerful chilly civil classic clean clear clever cloudy clumsy coarse coastal cold
common compact complex constant cool copper coral corny cosmic costly cozy crafty creamy crimson crisp crooked crude cruel curious curly
damp daring dark deaf dear decent deep dense dim direct distant divine dizzy double drab drowsy dry dull dusty eager early earnest
eastern easy elastic elder elegant empty entire equal exact exotic extra faint fair faithful famous fancy far fast fatal feeble fertile
fierce final fine firm fiscal fit flat fluffy fond foreign formal fragile frank free fresh friendly frosty frozen frugal full funny
fuzzy gaudy generous gentle giant gifted glad glassy global gloomy glossy golden good graceful grand grateful grave gray great greedy
green grim gritty gross hairy handsome handy happy hard harsh hasty hazy healthy heavy hidden high hollow holy homely honest hot huge
humble humid hungry icy ideal idle immense inner intense ivory jade jagged jolly joyful juicy keen kind known lame large late lavish
lazy lean legal level light likely limp linear little lively local lonely long loose lost loud lovely lowly loyal lucid lucky lunar
magic major marble marine massive mature meager mellow merry mighty mild minor mobile modern modest moist moral muddy mute mystic naive
narrow native neat nervous neutral new nimble noble noisy normal northern novel numb oaken obscure odd olive opaque open orange ornate
outer oval pale patient peaceful perfect pink placid plain playful pleasant plump polar polite poor prime private prompt proper proud
public pure purple quaint quick quiet rapid rare raw ready real regal remote rich rigid ripe roasted robust rocky rosy rough round royal
rude rugged rural rusty sacred safe salty sandy scarce scarlet secret secure senior serene severe shady shaggy shallow sharp shiny short
shy silent silky silly silver simple sincere single skinny sleek sleepy slender slim slow small smart smooth snowy sober social soft
solar solemn solid sour southern spare spicy stable stale stark steady steep stern sticky stiff still stormy stout strange strict strong
sturdy subtle sudden sunny superb sweet swift tall tame tan tart tasty tender tepid thick thin thirsty tidy tight tiny tired total tough
tranquil tricky true typical upper upset urban useful vacant vague valid vast velvet violet vital vivid warm wary wealthy weary western
wet white whole wicked wide wild windy wise witty wooden worthy young zany zesty
""".split()
)

NOUNS: tuple[str, ...] = tuple(
    """
abbey acorn acre actor album alley almond altar amber anchor angle ankle anthem antler anvil apple apron arcade arch archer arena armor
arrow artist atlas attic auction aunt avenue axle bacon badge badger bakery ballad balloon bamboo banana bandage banjo banner barge
barley barn barrel basil basin basket bath battery beach beacon beaker bean bear beard beaver bedroom beetle belfry bell belt bench
berry bicycle bird biscuit bishop bison blanket blossom blouse board boat bobbin boiler bone bonnet book boot border bottle boulder
bouquet bowl box bracelet branch brass bread breeze brick bridge bridle broom brother bubble bucket buckle buffalo bugle builder bull
bundle bunker bureau burrow bush butcher butler butter button cabbage cabin cabinet cable cactus cafe cage cake calendar camel camera
camp canal candle cannon canoe canvas canyon cape captain caravan carbon cargo carol carpet carriage carrot cart cashier casket castle
catalog cattle cavalry cave cedar ceiling cellar cello cement census cereal chain chair chalet chalk chamber channel chapel chapter
chariot chart cheese cherry chest chestnut chicken chief chimney chisel choir chorus cider cigar cinema circle circus citadel citizen
citrus claw clay clerk cliff climate clinic cloak clock closet cloth cloud clover coach coal coast coat cobbler cocoa coconut coffee
coin collar college colony column comet compass concert cone convent cook cookie cord cork corn corner costume cottage cotton couch
cougar council counter county courier court cousin cove cover cowboy crab cradle crane crater crayon cream creek crest crew cricket
crocus crop cross crow crowd crown crumb crust crystal cube cuckoo cup curb curtain curve cushion custard cycle cymbal dagger dairy
daisy dam dancer dawn deacon debate deck deer delta den dentist depot desert desk dessert diamond diary dinner diploma dish district
ditch dock doctor doll dolphin dome donkey door dough dove dragon drain drama drawer dress drill drum duchess duck duet duke dune
dungeon dusk duty dwarf eagle earl earth easel echo eel effort egg elbow elephant elk elm ember emblem emperor engine envelope essay
estate evening expert eyelid fable fabric factory fairy falcon family farmer fashion father faucet feast feather fence fern ferry
festival fiddle field fig figure film finch finger fire fish fjord flag flame flannel flask flavor fleet flint flock flood floor flour
flower flute foal foam fog forest forge fork fortress fossil fountain fox frame freight friar fridge frog frost fruit fuel funnel fur
furnace gallery galley game garage garden garlic garment gate gazette gear gem general ghost giraffe girder glacier glass glider globe
glove glue goat goblet goose gorge gown grain granite grape grass gravel grove guard guest guide guild guitar gulf gull hail hall halo
hamlet hammer hammock handle harbor hare harness harp harvest hat hatch hawk hay hazel heart hearth heather hedge heel helmet hen herald
herb herd hermit hero heron herring hill hinge hive hockey holiday honey hood hoof hook horizon horn horse hospital hostel hotel hour
house hunter hut hymn ice icon idea igloo infant ink inn insect iron island item ivy jacket jaguar jail jam jar jasmine jaw jelly jersey
jetty jewel jockey journal journey judge jug juice jungle juniper jury kayak kennel kettle key kilt king kiosk kitchen kite kitten knee
knife knight knot label lace ladder lady lagoon lake lamb lamp lance lantern lark latch lathe laundry lava lawn lawyer leaf league
leather lemon lens leopard lesson letter lever library lichen lid lighthouse lily lime linen lion lip lizard llama lobby lobster locker
lodge loft log loom lotus lumber lunch lute lynx machine magnet magpie maiden mailbox mallet manor mansion mantle manual map maple march
margin market marsh mask mason mast mat match mattress mayor maze meadow meal medal melody melon member mentor menu merchant mermaid
meteor meter midnight mill miller mineral minister mint minute mirror mission mist mitten moat model mole monarch monastery money monk
monkey month monument moon moor moose morning mortar mosaic mosque moss motel moth mother motor mound mountain mouse mouth mud mule
museum mushroom music musket mustard myth nail napkin navy neck needle nephew nest net nettle network newt niece night nomad noodle noon
north nose note notebook number nun nurse nut oak oar oasis oat ocean octopus office officer oil onion opera orbit orchard orchid order
organ orphan osprey ostrich otter oven owl owner ox oyster packet paddle page pagoda pail paint palace palm pan panda pane panel panther
pantry paper parade parcel parent parish park parlor parrot parsley partner party passage pasta pastor pastry pasture patch path patrol
pavement paw pea peach peacock peak peanut pear pearl pebble pelican pen pencil penguin pension people pepper permit petal phone photo
piano picnic picture pie pier pigeon pile pilgrim pillar pillow pilot pine pipe pirate pistol pitcher pixel pizza planet plank plant
plate plateau player plaza plow plum plumber pocket poem poet pole police pond pony pool poplar poppy porch port porter portrait post
potato potter pottery pouch powder prairie present priest prince print prison prize prophet province pudding puddle pulley pump pumpkin
pupil puppet puppy purse puzzle pyramid quail quarry quarter queen quill quilt quiver rabbit raccoon radar radio radish raft rail rain
rainbow raisin ram ranch ranger raven ravine razor recipe record reef region relic reptile resort ribbon rice riddle rider ridge rifle
ring river road robe robin robot rock rocket rod roof rook room rooster root rope rose rowboat rubber ruby rudder rug ruler saddle sail
sailor salad salmon salon salt sand sandal sapling satchel satin sauce saucer sausage savanna sawmill scale scarf school scissor scooter
scout screen screw script scroll sculptor sea seal season seat seed senator shadow shark shawl shed sheep sheet shelf shell shelter
shepherd sheriff shield ship shirt shoe shop shore shovel shrimp shrine shrub shutter sickle sidewalk signal silk sink siren sister
skate sketch skirt sky slate sled sleeve slipper slope smoke snail snow soap sock sofa soil soldier song soup south spade spark sparrow
spear sphere spice spider spinach spindle spiral spire sponge spoon spring spruce square squash squid squire stadium staff stage stair
stallion stamp star starling station statue steam steel steeple stem steward stick stirrup stone stool store stork storm story stove
stranger straw stream street string studio sturgeon submarine subway sugar suit suitcase summer summit sun sunset supper surgeon swallow
swamp swan sweater sword symbol syrup table tablet tailor tale talon tank tannery tapestry target tavern taxi tea teacher team teapot
temple tenant tennis tent terrace theater thicket thimble thistle thorn thread throne thrush thumb thunder ticket tide tiger tile timber
tin toad toast tobacco toffee tomato tongue tool tooth topaz torch tortoise totem tourist towel tower town toy track tractor trader
trail train tram trap tray treasure tree trellis trench tribe trophy trousers trout truck trumpet trunk tuba tulip tuna tundra tunic
tunnel turban turkey turnip turret turtle twig twin umbrella uncle uniform valley valve van vase vault veil vendor verse vessel vest
viaduct vicar victim village vine vinegar vineyard viola violin viper visitor vista voice volcano vowel voyage vulture wafer wagon waist
waiter wall wallet walnut walrus wand warden wardrobe warehouse warrior wasp watch water wave wax weasel weather weaver web wedding well
whale wharf wheat wheel whisker whistle widow wife willow window winter wire wizard wolf wood wool worker workshop worm wreath wren
wrist writer yacht yard yarn yogurt zebra zenith zipper zone
""".split()
)


def key_stream(rng: random.Random) -> Iterator[str]:
    """Endless `adjective-noun` keys without a repeat; there are over 500,000, and a haystack of a million tokens needs some 40,000."""
    seen: set[str] = set()
    while True:
        key = f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"
        if key not in seen:
            seen.add(key)
            yield key


def word_stream(rng: random.Random) -> Iterator[str]:
    """Every noun and adjective in a random order, then endless compounds such as `amberlantern`; no word comes twice."""
    words = [*ADJECTIVES, *NOUNS]
    rng.shuffle(words)
    yield from words
    seen = set(words)
    while True:
        word = rng.choice(ADJECTIVES) + rng.choice(NOUNS)
        if word not in seen:
            seen.add(word)
            yield word


_ARTICLE = re.compile(r"\b([Aa])(?= [aeio])")


def with_articles(text: str) -> str:
    """`a` before a vowel becomes `an`, for sentences whose words were drawn."""
    return _ARTICLE.sub(r"\1n", text)
