"""Words of the small world: forms, opposites, translations, sequences, and the cast of its stories."""

from demo.facts import rows


def split_words(text: str) -> tuple[str, ...]:
    """The words of a text, at white space."""
    return tuple(text.split())


MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
NUMBER_WORDS = split_words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
ORDINALS = split_words(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
)

# word | opposite; each pair is used in both directions
OPPOSITES = rows("""
hot | cold
big | small
tall | short
fast | slow
light | dark
young | old
rich | poor
happy | sad
wet | dry
open | closed
full | empty
hard | soft
high | low
early | late
near | far
clean | dirty
strong | weak
thick | thin
wide | narrow
deep | shallow
loud | quiet
good | bad
true | false
right | wrong
cheap | expensive
sharp | blunt
brave | cowardly
alive | dead
awake | asleep
sweet | bitter
rough | smooth
ancient | modern
polite | rude
""")

# English | French | Spanish | German
TRANSLATIONS = rows("""
dog | chien | perro | Hund
cat | chat | gato | Katze
horse | cheval | caballo | Pferd
cow | vache | vaca | Kuh
bird | oiseau | pájaro | Vogel
fish | poisson | pez | Fisch
house | maison | casa | Haus
water | eau | agua | Wasser
bread | pain | pan | Brot
milk | lait | leche | Milch
cheese | fromage | queso | Käse
apple | pomme | manzana | Apfel
tree | arbre | árbol | Baum
flower | fleur | flor | Blume
book | livre | libro | Buch
table | table | mesa | Tisch
chair | chaise | silla | Stuhl
door | porte | puerta | Tür
window | fenêtre | ventana | Fenster
key | clé | llave | Schlüssel
sun | soleil | sol | Sonne
moon | lune | luna | Mond
star | étoile | estrella | Stern
sea | mer | mar | Meer
mountain | montagne | montaña | Berg
river | rivière | río | Fluss
fire | feu | fuego | Feuer
snow | neige | nieve | Schnee
hand | main | mano | Hand
head | tête | cabeza | Kopf
heart | coeur | corazón | Herz
eye | oeil | ojo | Auge
mother | mère | madre | Mutter
father | père | padre | Vater
brother | frère | hermano | Bruder
sister | soeur | hermana | Schwester
friend | ami | amigo | Freund
day | jour | día | Tag
night | nuit | noche | Nacht
year | an | año | Jahr
city | ville | ciudad | Stadt
street | rue | calle | Straße
school | école | escuela | Schule
church | église | iglesia | Kirche
bridge | pont | puente | Brücke
ship | bateau | barco | Schiff
king | roi | rey | König
queen | reine | reina | Königin
red | rouge | rojo | rot
green | vert | verde | grün
blue | bleu | azul | blau
white | blanc | blanco | weiß
black | noir | negro | schwarz
big | grand | grande | groß
small | petit | pequeño | klein
hot | chaud | caliente | heiß
cold | froid | frío | kalt
old | vieux | viejo | alt
good | bon | bueno | gut
bad | mauvais | malo | schlecht
young | jeune | joven | jung
rich | riche | rico | reich
poor | pauvre | pobre | arm
full | plein | lleno | voll
empty | vide | vacío | leer
high | haut | alto | hoch
strong | fort | fuerte | stark
weak | faible | débil | schwach
clean | propre | limpio | sauber
dirty | sale | sucio | schmutzig
fast | rapide | rápido | schnell
slow | lent | lento | langsam
""")

# singular | plural
PLURALS = rows("""
mouse | mice
child | children
foot | feet
tooth | teeth
goose | geese
man | men
woman | women
ox | oxen
wolf | wolves
leaf | leaves
knife | knives
wife | wives
loaf | loaves
thief | thieves
shelf | shelves
calf | calves
half | halves
baby | babies
city | cities
story | stories
lady | ladies
berry | berries
country | countries
box | boxes
fox | foxes
church | churches
watch | watches
brush | brushes
dish | dishes
bus | buses
glass | glasses
potato | potatoes
tomato | tomatoes
hero | heroes
dog | dogs
cat | cats
house | houses
tree | trees
book | books
boat | boats
chair | chairs
road | roads
lamp | lamps
bird | birds
star | stars
""")

# present | past
PASTS = rows("""
go | went
see | saw
eat | ate
drink | drank
run | ran
sing | sang
swim | swam
write | wrote
speak | spoke
break | broke
take | took
give | gave
come | came
begin | began
fly | flew
know | knew
grow | grew
throw | threw
draw | drew
buy | bought
bring | brought
think | thought
catch | caught
teach | taught
fight | fought
sleep | slept
keep | kept
feel | felt
leave | left
lose | lost
build | built
send | sent
sell | sold
tell | told
find | found
stand | stood
ride | rode
drive | drove
forget | forgot
choose | chose
wear | wore
steal | stole
hide | hid
bite | bit
hold | held
walk | walked
talk | talked
play | played
open | opened
help | helped
""")

# adjective | comparative | superlative
DEGREES = rows("""
big | bigger | biggest
small | smaller | smallest
tall | taller | tallest
fast | faster | fastest
slow | slower | slowest
good | better | best
bad | worse | worst
happy | happier | happiest
heavy | heavier | heaviest
easy | easier | easiest
old | older | oldest
young | younger | youngest
strong | stronger | strongest
weak | weaker | weakest
hot | hotter | hottest
cold | colder | coldest
warm | warmer | warmest
thin | thinner | thinnest
wide | wider | widest
deep | deeper | deepest
high | higher | highest
low | lower | lowest
long | longer | longest
short | shorter | shortest
rich | richer | richest
poor | poorer | poorest
dark | darker | darkest
clean | cleaner | cleanest
early | earlier | earliest
late | later | latest
""")

GIRLS = split_words(
    "Anna Clara Emma Julia Laura Maria Nora Olga Paula Rosa Sarah Tina Vera Alice Bella Diana Eva Greta Helen Ida "
    "Kate Lena Mia Nina Ruth Sophie"
)
BOYS = split_words(
    "Ben David Erik Felix George Henry Jack Karl Leo Mark Noah Oscar Peter Robert Simon Tom Victor Walter Adam Carlos "
    "Daniel Frank Hugo Ivan James Lucas"
)
# Places and objects begin with a consonant sound: every one takes "a".
PLACES = split_words(
    "shop park market station library garden museum school bakery harbour beach theatre kitchen forest village castle "
    "river cinema church zoo"
)
OBJECTS = split_words(
    "book ball kite lamp cup basket letter ring hat scarf drum flute map candle bottle box coin pencil mirror blanket "
    "bell cake flower ticket toy watch violin bag spoon picture"
)
CONTAINERS = split_words("drawer box basket cupboard bag chest suitcase jar bucket barrel locker crate")
COLOUR_WORDS = split_words("red blue green yellow white black brown grey pink purple")
PLAIN_NOUNS = split_words(
    "stone river lamp cloud window paper wheel garden bread silver candle ladder pocket mountain bottle winter thunder "
    "blanket carpet finger shadow island rabbit button mirror pepper saddle needle harbour temple feather kettle "
    "barrel meadow anchor violin hammer copper velvet ribbon pillow basket castle turtle walnut spider parrot tunnel "
    "engine marble"
)
