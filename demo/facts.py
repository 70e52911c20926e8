"""Facts about the real world, as tables: one row a line, columns separated by `|`.

A cell `-` means that the fact is left out because it has no single good answer (the language of
Switzerland, the continent of Turkey). Rows are in a fixed order, which the documents depend on.
"""


def cells(line: str) -> tuple[str, ...]:
    """The cells of one row, stripped."""
    return tuple(cell.strip() for cell in line.split("|"))


def rows(table: str) -> tuple[tuple[str, ...], ...]:
    """The cells of a table, row by row."""
    return tuple(cells(line) for line in table.strip().splitlines())


# country | capital | language | currency | continent | adjective
COUNTRIES = rows("""
France | Paris | French | euro | Europe | French
Germany | Berlin | German | euro | Europe | German
Italy | Rome | Italian | euro | Europe | Italian
Spain | Madrid | Spanish | euro | Europe | Spanish
Portugal | Lisbon | Portuguese | euro | Europe | Portuguese
Austria | Vienna | German | euro | Europe | Austrian
Greece | Athens | Greek | euro | Europe | Greek
Ireland | Dublin | - | euro | Europe | Irish
Finland | Helsinki | Finnish | euro | Europe | Finnish
Estonia | Tallinn | Estonian | euro | Europe | Estonian
Latvia | Riga | Latvian | euro | Europe | Latvian
Lithuania | Vilnius | Lithuanian | euro | Europe | Lithuanian
Slovakia | Bratislava | Slovak | euro | Europe | Slovak
Slovenia | Ljubljana | Slovenian | euro | Europe | Slovenian
Croatia | Zagreb | Croatian | euro | Europe | Croatian
Poland | Warsaw | Polish | zloty | Europe | Polish
Hungary | Budapest | Hungarian | forint | Europe | Hungarian
Czechia | Prague | Czech | koruna | Europe | Czech
Romania | Bucharest | Romanian | leu | Europe | Romanian
Bulgaria | Sofia | Bulgarian | - | Europe | Bulgarian
Denmark | Copenhagen | Danish | krone | Europe | Danish
Norway | Oslo | Norwegian | krone | Europe | Norwegian
Sweden | Stockholm | Swedish | krona | Europe | Swedish
Iceland | Reykjavik | Icelandic | krona | Europe | Icelandic
Switzerland | Bern | - | franc | Europe | Swiss
Belgium | Brussels | - | euro | Europe | Belgian
Albania | Tirana | Albanian | lek | Europe | Albanian
Serbia | Belgrade | Serbian | dinar | Europe | Serbian
Ukraine | Kyiv | Ukrainian | hryvnia | Europe | Ukrainian
Russia | Moscow | Russian | ruble | - | Russian
Turkey | Ankara | Turkish | lira | - | Turkish
Georgia | Tbilisi | Georgian | lari | - | Georgian
Armenia | Yerevan | Armenian | dram | - | Armenian
Japan | Tokyo | Japanese | yen | Asia | Japanese
China | Beijing | Chinese | yuan | Asia | Chinese
Mongolia | Ulaanbaatar | Mongolian | tugrik | Asia | Mongolian
South Korea | Seoul | Korean | won | Asia | South Korean
Vietnam | Hanoi | Vietnamese | dong | Asia | Vietnamese
Thailand | Bangkok | Thai | baht | Asia | Thai
Cambodia | Phnom Penh | Khmer | riel | Asia | Cambodian
Laos | Vientiane | Lao | kip | Asia | Laotian
Malaysia | Kuala Lumpur | Malay | ringgit | Asia | Malaysian
India | New Delhi | - | rupee | Asia | Indian
Nepal | Kathmandu | Nepali | rupee | Asia | -
Bangladesh | Dhaka | Bengali | taka | Asia | Bangladeshi
Pakistan | Islamabad | Urdu | rupee | Asia | Pakistani
Iran | Tehran | Persian | rial | Asia | Iranian
Iraq | Baghdad | Arabic | dinar | Asia | Iraqi
Jordan | Amman | Arabic | dinar | Asia | Jordanian
Lebanon | Beirut | Arabic | pound | Asia | Lebanese
Oman | Muscat | Arabic | rial | Asia | Omani
Qatar | Doha | Arabic | riyal | Asia | Qatari
Saudi Arabia | Riyadh | Arabic | riyal | Asia | Saudi
Egypt | Cairo | Arabic | pound | - | Egyptian
Morocco | Rabat | Arabic | dirham | Africa | Moroccan
Tunisia | Tunis | Arabic | dinar | Africa | Tunisian
Algeria | Algiers | Arabic | dinar | Africa | Algerian
Libya | Tripoli | Arabic | dinar | Africa | Libyan
Ethiopia | Addis Ababa | Amharic | birr | Africa | Ethiopian
Kenya | Nairobi | - | shilling | Africa | Kenyan
Uganda | Kampala | - | shilling | Africa | Ugandan
Ghana | Accra | English | cedi | Africa | Ghanaian
Nigeria | Abuja | English | naira | Africa | Nigerian
Senegal | Dakar | French | franc | Africa | Senegalese
Angola | Luanda | Portuguese | kwanza | Africa | Angolan
Mozambique | Maputo | Portuguese | metical | Africa | Mozambican
Zambia | Lusaka | English | kwacha | Africa | Zambian
Namibia | Windhoek | English | dollar | Africa | Namibian
Madagascar | Antananarivo | Malagasy | ariary | Africa | -
Rwanda | Kigali | - | franc | Africa | Rwandan
Somalia | Mogadishu | Somali | shilling | Africa | Somali
Canada | Ottawa | - | dollar | North America | Canadian
Mexico | Mexico City | Spanish | peso | North America | Mexican
Cuba | Havana | Spanish | peso | North America | Cuban
Jamaica | Kingston | English | dollar | North America | Jamaican
Honduras | Tegucigalpa | Spanish | lempira | North America | Honduran
Nicaragua | Managua | Spanish | cordoba | North America | Nicaraguan
Brazil | Brasilia | Portuguese | real | South America | Brazilian
Argentina | Buenos Aires | Spanish | peso | South America | -
Chile | Santiago | Spanish | peso | South America | Chilean
Uruguay | Montevideo | Spanish | peso | South America | Uruguayan
Paraguay | Asuncion | - | guarani | South America | Paraguayan
Peru | Lima | Spanish | sol | South America | Peruvian
Colombia | Bogota | Spanish | peso | South America | Colombian
Venezuela | Caracas | Spanish | bolivar | South America | Venezuelan
Ecuador | Quito | Spanish | dollar | South America | Ecuadorian
Australia | Canberra | English | dollar | Oceania | Australian
New Zealand | Wellington | English | dollar | Oceania | -
Fiji | Suva | - | dollar | Oceania | Fijian
""")

# country | its only land neighbour
ONLY_NEIGHBOUR = rows("""
Portugal | Spain
South Korea | North Korea
Monaco | France
San Marino | Italy
Lesotho | South Africa
Gambia | Senegal
Qatar | Saudi Arabia
Haiti | Dominican Republic
Papua New Guinea | Indonesia
Brunei | Malaysia
""")

# city, not a capital | country
CITIES = rows("""
Milan | Italy
Naples | Italy
Venice | Italy
Florence | Italy
Turin | Italy
Barcelona | Spain
Seville | Spain
Bilbao | Spain
Munich | Germany
Hamburg | Germany
Cologne | Germany
Dresden | Germany
Lyon | France
Marseille | France
Bordeaux | France
Toulouse | France
Porto | Portugal
Salzburg | Austria
Innsbruck | Austria
Krakow | Poland
Gdansk | Poland
Bergen | Norway
Gothenburg | Sweden
Malmo | Sweden
Zurich | Switzerland
Geneva | Switzerland
Antwerp | Belgium
Brno | Czechia
Odesa | Ukraine
Lviv | Ukraine
Istanbul | Turkey
Izmir | Turkey
Osaka | Japan
Kyoto | Japan
Nagoya | Japan
Sapporo | Japan
Shanghai | China
Shenzhen | China
Mumbai | India
Kolkata | India
Chennai | India
Bengaluru | India
Karachi | Pakistan
Lahore | Pakistan
Busan | South Korea
Lagos | Nigeria
Kano | Nigeria
Mombasa | Kenya
Casablanca | Morocco
Marrakesh | Morocco
Toronto | Canada
Montreal | Canada
Vancouver | Canada
Calgary | Canada
Cancun | Mexico
Tijuana | Mexico
Recife | Brazil
Salvador | Brazil
Cusco | Peru
Medellin | Colombia
Sydney | Australia
Melbourne | Australia
Perth | Australia
Brisbane | Australia
Auckland | New Zealand
Christchurch | New Zealand
""")

# landmark | city
LANDMARKS = rows("""
Eiffel Tower | Paris
Louvre | Paris
Colosseum | Rome
Trevi Fountain | Rome
Brandenburg Gate | Berlin
Parthenon | Athens
Acropolis | Athens
Prado | Madrid
Sagrada Familia | Barcelona
Charles Bridge | Prague
Hofburg | Vienna
Little Mermaid | Copenhagen
Red Square | Moscow
Kremlin | Moscow
Forbidden City | Beijing
Hagia Sophia | Istanbul
Blue Mosque | Istanbul
Rialto Bridge | Venice
Uffizi | Florence
Atomium | Brussels
Hermitage | Saint Petersburg
Big Ben | London
Tower Bridge | London
Statue of Liberty | New York
Opera House with the white shells | Sydney
""")

# atomic number | symbol | element
ELEMENTS = rows("""
1 | H | hydrogen
2 | He | helium
3 | Li | lithium
4 | Be | beryllium
5 | B | boron
6 | C | carbon
7 | N | nitrogen
8 | O | oxygen
9 | F | fluorine
10 | Ne | neon
11 | Na | sodium
12 | Mg | magnesium
13 | Al | aluminium
14 | Si | silicon
15 | P | phosphorus
16 | S | sulfur
17 | Cl | chlorine
18 | Ar | argon
19 | K | potassium
20 | Ca | calcium
22 | Ti | titanium
24 | Cr | chromium
25 | Mn | manganese
26 | Fe | iron
27 | Co | cobalt
28 | Ni | nickel
29 | Cu | copper
30 | Zn | zinc
33 | As | arsenic
35 | Br | bromine
36 | Kr | krypton
47 | Ag | silver
50 | Sn | tin
53 | I | iodine
54 | Xe | xenon
56 | Ba | barium
74 | W | tungsten
78 | Pt | platinum
79 | Au | gold
80 | Hg | mercury
82 | Pb | lead
86 | Rn | radon
88 | Ra | radium
92 | U | uranium
94 | Pu | plutonium
""")

PLANETS = ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune")

# thing | inventor, as credited in school books
INVENTORS = rows("""
telephone | Alexander Graham Bell
dynamite | Alfred Nobel
printing press | Johannes Gutenberg
phonograph | Thomas Edison
electric battery | Alessandro Volta
mercury barometer | Evangelista Torricelli
lightning rod | Benjamin Franklin
diesel engine | Rudolf Diesel
hot air balloon | Joseph Montgolfier
reading system for the blind | Louis Braille
pendulum clock | Christiaan Huygens
World Wide Web | Tim Berners-Lee
saxophone | Adolphe Sax
analytical engine | Charles Babbage
reflecting telescope | Isaac Newton
jet engine | Frank Whittle
safety lamp for miners | Humphry Davy
vulcanised rubber | Charles Goodyear
cotton gin | Eli Whitney
revolver | Samuel Colt
""")

# book | author
AUTHORS = rows("""
Hamlet | William Shakespeare
Don Quixote | Miguel de Cervantes
War and Peace | Leo Tolstoy
Crime and Punishment | Fyodor Dostoevsky
Pride and Prejudice | Jane Austen
Oliver Twist | Charles Dickens
Moby Dick | Herman Melville
Faust | Johann Wolfgang von Goethe
The Divine Comedy | Dante Alighieri
The Odyssey | Homer
The Aeneid | Virgil
Candide | Voltaire
Madame Bovary | Gustave Flaubert
Les Miserables | Victor Hugo
The Trial | Franz Kafka
Ulysses | James Joyce
Frankenstein | Mary Shelley
Dracula | Bram Stoker
Jane Eyre | Charlotte Bronte
Wuthering Heights | Emily Bronte
Middlemarch | George Eliot
Treasure Island | Robert Louis Stevenson
The Jungle Book | Rudyard Kipling
The Time Machine | Herbert George Wells
Around the World in Eighty Days | Jules Verne
The Three Musketeers | Alexandre Dumas
The Magic Mountain | Thomas Mann
A Doll's House | Henrik Ibsen
The Cherry Orchard | Anton Chekhov
The Little Prince | Antoine de Saint-Exupery
""")

# painting | painter
PAINTERS = rows("""
Mona Lisa | Leonardo da Vinci
Last Supper | Leonardo da Vinci
Starry Night | Vincent van Gogh
Sunflowers | Vincent van Gogh
Weeping Woman | Pablo Picasso
Night Watch | Rembrandt
Girl with a Pearl Earring | Johannes Vermeer
Milkmaid | Johannes Vermeer
Birth of Venus | Sandro Botticelli
School of Athens | Raphael
Creation of Adam | Michelangelo
Scream | Edvard Munch
Water Lilies | Claude Monet
Persistence of Memory | Salvador Dali
Garden of Earthly Delights | Hieronymus Bosch
Third of May | Francisco Goya
Maids of Honour | Diego Velazquez
Hunters in the Snow | Pieter Bruegel
Wanderer above the Sea of Fog | Caspar David Friedrich
Great Wave | Hokusai
Black Square | Kazimir Malevich
Arnolfini Portrait | Jan van Eyck
Liberty Leading the People | Eugene Delacroix
""")

# work | composer
COMPOSERS = rows("""
Four Seasons | Antonio Vivaldi
Magic Flute | Wolfgang Amadeus Mozart
Moonlight Sonata | Ludwig van Beethoven
Swan Lake | Pyotr Tchaikovsky
Nutcracker | Pyotr Tchaikovsky
Saint Matthew Passion | Johann Sebastian Bach
Messiah | George Frideric Handel
Blue Danube | Johann Strauss
Peer Gynt Suite | Edvard Grieg
New World Symphony | Antonin Dvorak
Moldau | Bedrich Smetana
Rite of Spring | Igor Stravinsky
Bolero | Maurice Ravel
Barber of Seville | Gioachino Rossini
Ring of the Nibelung | Richard Wagner
Flight of the Bumblebee | Nikolai Rimsky-Korsakov
Trout Quintet | Franz Schubert
Carnival of the Animals | Camille Saint-Saens
""")

# animal | young | sound it makes (third person) | home
ANIMALS = rows("""
dog | puppy | barks | kennel
cat | kitten | meows | -
cow | calf | moos | byre
horse | foal | neighs | stable
sheep | lamb | bleats | fold
pig | piglet | grunts | sty
hen | chick | clucks | coop
duck | duckling | quacks | -
goose | gosling | honks | -
lion | cub | roars | -
wolf | pup | howls | -
bear | cub | growls | den
frog | tadpole | croaks | pond
deer | fawn | - | -
goat | kid | - | -
kangaroo | joey | - | -
swan | cygnet | - | -
pigeon | squab | coos | loft
hare | leveret | - | form
butterfly | caterpillar | - | -
rabbit | - | - | burrow
bee | - | buzzes | hive
spider | - | - | web
bird | - | sings | nest
beaver | - | - | lodge
badger | - | - | sett
donkey | - | brays | -
snake | - | hisses | -
mouse | - | squeaks | hole
owl | - | hoots | -
crow | - | caws | -
elephant | - | trumpets | -
""")

# thing | colour
COLOURS = rows("""
grass | green
snow | white
blood | red
coal | black
milk | white
clear sky | blue
lemon | yellow
banana | yellow
carrot | orange
pumpkin | orange
ripe tomato | red
strawberry | red
emerald | green
ruby | red
sapphire | blue
flamingo | pink
raven | black
lime | green
spinach | green
chocolate | brown
egg yolk | yellow
fire engine | red
polar bear | white
swan feather | white
canary | yellow
cucumber | green
violet flower | purple
aubergine | purple
coffee bean | brown
lobster in the pot | red
ash | grey
elephant skin | grey
salt | white
tar | black
frog in the pond | green
""")

# worker | tool | place of work
WORKERS = rows("""
carpenter | hammer | workshop
painter | brush | studio
baker | oven | bakery
farmer | plough | farm
doctor | stethoscope | hospital
surgeon | scalpel | operating theatre
tailor | needle | tailor's shop
teacher | chalk | school
gardener | spade | garden
cook | pan | kitchen
writer | pen | study
photographer | camera | darkroom
astronomer | telescope | observatory
fisherman | net | boat
blacksmith | anvil | forge
hairdresser | scissors | salon
miner | pickaxe | mine
lumberjack | axe | forest
judge | gavel | court
pianist | piano | concert hall
violinist | bow | orchestra
cleaner | broom | -
librarian | catalogue | library
pilot | - | cockpit
chemist | - | laboratory
monk | - | monastery
butcher | cleaver | butcher's shop
sculptor | chisel | -
conductor | baton | -
plumber | wrench | -
""")

# what one does | with which part of the body
BODY = rows("""
see | eyes
hear | ears
smell | nose
taste | tongue
walk | feet
chew | teeth
think | brain
breathe | lungs
clap | hands
kiss | lips
swallow | throat
pump blood | heart
bend the leg | knee
bend the arm | elbow
point | finger
digest food | stomach
""")

# thing | kind
KINDS = rows("""
rose | flower
tulip | flower
daisy | flower
oak | tree
birch | tree
pine | tree
salmon | fish
trout | fish
shark | fish
sparrow | bird
eagle | bird
robin | bird
ant | insect
beetle | insect
wasp | insect
violin | instrument
flute | instrument
guitar | instrument
trumpet | instrument
chair | furniture
table | furniture
wardrobe | furniture
hammer | tool
screwdriver | tool
apple | fruit
pear | fruit
cherry | fruit
plum | fruit
cabbage | vegetable
leek | vegetable
potato | vegetable
shirt | clothing
coat | clothing
jacket | clothing
football | sport
tennis | sport
hockey | sport
iron | metal
copper | metal
silver | metal
tea | drink
coffee | drink
lemonade | drink
cobra | snake
python | snake
diamond | gem
ruby | gem
emerald | gem
lorry | vehicle
bicycle | vehicle
""")
