"""Tables of facts that the demo model is taught. Plain data; generate.py turns it into dialogues."""


def _pairs(text):
    """Parses 'a:b, c:d' into [(a, b), ...]; newlines count as spaces."""
    return [tuple(part.strip() for part in item.split(":")) for item in text.replace("\n", " ").split(",")]


def _words(text):
    return [word.strip() for word in text.replace("\n", " ").split(",")]


# country: capital: continent: main language
COUNTRIES = _pairs("""
France:Paris:Europe:French, Germany:Berlin:Europe:German, Italy:Rome:Europe:Italian,
Spain:Madrid:Europe:Spanish, Portugal:Lisbon:Europe:Portuguese, Greece:Athens:Europe:Greek,
Poland:Warsaw:Europe:Polish, Austria:Vienna:Europe:German, Hungary:Budapest:Europe:Hungarian,
Sweden:Stockholm:Europe:Swedish, Norway:Oslo:Europe:Norwegian, Denmark:Copenhagen:Europe:Danish,
Finland:Helsinki:Europe:Finnish, Ireland:Dublin:Europe:English, England:London:Europe:English,
Scotland:Edinburgh:Europe:English, Iceland:Reykjavik:Europe:Icelandic, Russia:Moscow:Europe:Russian,
Ukraine:Kyiv:Europe:Ukrainian, Romania:Bucharest:Europe:Romanian, Bulgaria:Sofia:Europe:Bulgarian,
Croatia:Zagreb:Europe:Croatian, Serbia:Belgrade:Europe:Serbian, Belgium:Brussels:Europe:Dutch,
Japan:Tokyo:Asia:Japanese, China:Beijing:Asia:Chinese, India:New Delhi:Asia:Hindi,
Thailand:Bangkok:Asia:Thai, Vietnam:Hanoi:Asia:Vietnamese, South Korea:Seoul:Asia:Korean,
Mongolia:Ulaanbaatar:Asia:Mongolian, Iran:Tehran:Asia:Persian, Iraq:Baghdad:Asia:Arabic,
Turkey:Ankara:Asia:Turkish, Nepal:Kathmandu:Asia:Nepali, Indonesia:Jakarta:Asia:Indonesian,
Egypt:Cairo:Africa:Arabic, Kenya:Nairobi:Africa:Swahili, Nigeria:Abuja:Africa:English,
Morocco:Rabat:Africa:Arabic, Ghana:Accra:Africa:English, Ethiopia:Addis Ababa:Africa:Amharic,
Senegal:Dakar:Africa:French, Tunisia:Tunis:Africa:Arabic, Canada:Ottawa:North America:English,
Mexico:Mexico City:North America:Spanish, Cuba:Havana:North America:Spanish,
Brazil:Brasilia:South America:Portuguese, Argentina:Buenos Aires:South America:Spanish,
Chile:Santiago:South America:Spanish, Peru:Lima:South America:Spanish,
Colombia:Bogota:South America:Spanish, Australia:Canberra:Oceania:English,
New Zealand:Wellington:Oceania:English
""")

# animal: sound verb: young: legs
ANIMALS = _pairs("""
dog:barks:puppy:4, cat:meows:kitten:4, cow:moos:calf:4, sheep:bleats:lamb:4, horse:neighs:foal:4,
duck:quacks:duckling:2, hen:clucks:chick:2, pig:oinks:piglet:4, lion:roars:cub:4, wolf:howls:pup:4,
goat:bleats:kid:4, owl:hoots:owlet:2, bear:growls:cub:4, goose:honks:gosling:2, donkey:brays:foal:4,
frog:croaks:tadpole:4, bee:buzzes:larva:6, elephant:trumpets:calf:4, snake:hisses:snakelet:0,
mouse:squeaks:pup:4, crow:caws:chick:2, pigeon:coos:squab:2, tiger:roars:cub:4, deer:bellows:fawn:4,
swan:hisses:cygnet:2, eagle:screeches:eaglet:2, fox:barks:cub:4, spider:is silent:spiderling:8,
rabbit:squeaks:kit:4, turkey:gobbles:poult:2
""")

COLOURS = _pairs("""
sky:blue, grass:green, snow:white, coal:black, blood:red, banana:yellow, lemon:yellow, carrot:orange,
tomato:red, cucumber:green, milk:white, night:black, chocolate:brown, strawberry:red, sea:blue,
leaf:green, sunflower:yellow, elephant:grey, flamingo:pink, plum:purple, raven:black, swan:white,
pumpkin:orange, cherry:red, lavender:purple, broccoli:green, sand:yellow, ash:grey, wood:brown,
salt:white, frog:green, lobster:red, gold:yellow, cloud:white, soot:black, spinach:green
""")

OPPOSITES = _pairs("""
hot:cold, big:small, tall:short, fast:slow, young:old, good:bad, happy:sad, light:dark, open:closed,
rich:poor, hard:soft, wet:dry, early:late, near:far, high:low, left:right, up:down, in:out, day:night,
black:white, full:empty, strong:weak, clean:dirty, thick:thin, deep:shallow, wide:narrow,
loud:quiet, sweet:sour, first:last, begin:end, win:lose, love:hate, push:pull, buy:sell,
always:never, true:false, heavy:lightweight, sharp:blunt, rough:smooth, safe:dangerous, war:peace,
front:back, top:bottom, inside:outside, cheap:expensive, awake:asleep, easy:difficult, north:south,
east:west, brave:cowardly, summer:winter, friend:enemy, question:answer, arrive:leave
""")

PLURALS = _pairs("""
cat:cats, dog:dogs, mouse:mice, child:children, foot:feet, tooth:teeth, goose:geese, man:men,
woman:women, box:boxes, baby:babies, city:cities, leaf:leaves, knife:knives, wolf:wolves, fish:fish,
sheep:sheep, ox:oxen, potato:potatoes, tomato:tomatoes, bus:buses, church:churches, fox:foxes,
story:stories, wife:wives, half:halves, shelf:shelves, hero:heroes, person:people, cactus:cacti,
house:houses, book:books, tree:trees, key:keys, toy:toys, party:parties, deer:deer, loaf:loaves,
glass:glasses, dish:dishes
""")

PAST = _pairs("""
go:went, see:saw, eat:ate, run:ran, take:took, give:gave, come:came, write:wrote, speak:spoke,
drink:drank, sing:sang, swim:swam, buy:bought, think:thought, bring:brought, teach:taught, walk:walked,
play:played, make:made, find:found, fly:flew, know:knew, begin:began, break:broke, sleep:slept
""")

# English: French: German: Spanish
TRANSLATIONS = _pairs("""
dog:chien:Hund:perro, cat:chat:Katze:gato, house:maison:Haus:casa, water:eau:Wasser:agua,
bread:pain:Brot:pan, book:livre:Buch:libro, tree:arbre:Baum:arbol, sun:soleil:Sonne:sol,
moon:lune:Mond:luna, milk:lait:Milch:leche, fish:poisson:Fisch:pez, red:rouge:rot:rojo,
green:vert:gruen:verde, one:un:eins:uno, two:deux:zwei:dos, three:trois:drei:tres,
friend:ami:Freund:amigo, day:jour:Tag:dia, night:nuit:Nacht:noche, hello:bonjour:hallo:hola,
thanks:merci:danke:gracias, yes:oui:ja:si, no:non:nein:no, apple:pomme:Apfel:manzana,
hand:main:Hand:mano, city:ville:Stadt:ciudad, school:ecole:Schule:escuela, love:amour:Liebe:amor
""")

AUTHORS = _pairs("""
Hamlet:William Shakespeare, Macbeth:William Shakespeare, Romeo and Juliet:William Shakespeare,
The Odyssey:Homer, The Iliad:Homer, Faust:Johann Wolfgang von Goethe, War and Peace:Leo Tolstoy,
Anna Karenina:Leo Tolstoy, Crime and Punishment:Fyodor Dostoevsky, Don Quixote:Miguel de Cervantes,
Oliver Twist:Charles Dickens, Great Expectations:Charles Dickens, Emma:Jane Austen,
Pride and Prejudice:Jane Austen, Moby Dick:Herman Melville, Dracula:Bram Stoker,
Frankenstein:Mary Shelley, Les Miserables:Victor Hugo, Ulysses:James Joyce, The Trial:Franz Kafka,
Animal Farm:George Orwell, The Hobbit:J. R. R. Tolkien, Jane Eyre:Charlotte Bronte,
Treasure Island:Robert Louis Stevenson, The Divine Comedy:Dante Alighieri, Tom Sawyer:Mark Twain,
Alice in Wonderland:Lewis Carroll, The Little Prince:Antoine de Saint-Exupery
""")

SYMBOLS = _pairs("""
hydrogen:H, helium:He, carbon:C, nitrogen:N, oxygen:O, sodium:Na, iron:Fe, copper:Cu, silver:Ag,
gold:Au, lead:Pb, tin:Sn, zinc:Zn, calcium:Ca, potassium:K, chlorine:Cl, neon:Ne, sulfur:S,
mercury:Hg, uranium:U, lithium:Li, silicon:Si, nickel:Ni, iodine:I
""")

KINDS = _pairs("""
rose:flower, tulip:flower, daisy:flower, oak:tree, pine:tree, birch:tree, apple:fruit, pear:fruit,
grape:fruit, carrot:vegetable, onion:vegetable, cabbage:vegetable, dog:animal, horse:animal,
salmon:fish, trout:fish, shark:fish, eagle:bird, sparrow:bird, penguin:bird, ant:insect,
butterfly:insect, violin:musical instrument, piano:musical instrument, flute:musical instrument,
hammer:tool, saw:tool, chair:piece of furniture, table:piece of furniture, car:vehicle, bus:vehicle,
football:sport, tennis:sport, shirt:piece of clothing, hat:piece of clothing, iron:metal, copper:metal,
Mars:planet, Venus:planet, Python:programming language, French:language
""")

DAYS = _words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
MONTHS = _words(
    "January, February, March, April, May, June, July, August, September, October, November, December"
)
MONTH_LENGTHS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
ORDINALS = _words(
    "first, second, third, fourth, fifth, sixth, seventh, eighth, ninth, tenth, eleventh, twelfth"
)
NUMBER_WORDS = _words("""zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve,
    thirteen, fourteen, fifteen, sixteen, seventeen, eighteen, nineteen, twenty""")
PLANETS = _words("Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune")
SPELLING = _words("""cat, dog, sun, tree, book, fish, house, water, apple, bread, green, table, mouse,
    river, stone, cloud, light, plane, train, music, shoal, whale, ocean, token, model, horse, snake,
    paper, garden, window, friend, school, yellow, purple, orange, winter, summer, spring, flower""")

# (questions, answer, the words that must be in the answer). Several ways to ask, one answer.
GENERAL = [
    (["What do plants need to grow?", "What does a plant need to grow?"],
     "Plants need light, water and air to grow.", "light"),
    (["At what temperature does water boil?", "When does water boil?", "What is the boiling point of water?"],
     "Water boils at 100 degrees Celsius.", "100"),
    (["At what temperature does water freeze?", "When does water freeze?",
      "What is the freezing point of water?"], "Water freezes at 0 degrees Celsius.", "0"),
    (["What is ice made of?", "What is ice?"], "Ice is frozen water.", "frozen water"),
    (["What is the largest planet?", "Which planet is the biggest?", "Name the largest planet."],
     "The largest planet is Jupiter.", "Jupiter"),
    (["What is the smallest planet?", "Which planet is the smallest?"],
     "The smallest planet is Mercury.", "Mercury"),
    (["Which planet is closest to the sun?", "What planet is nearest to the sun?"],
     "Mercury is closest to the sun.", "Mercury"),
    (["Which planet do we live on?", "What planet do people live on?"], "We live on Earth.", "Earth"),
    (["Which planet is called the red planet?", "What is the red planet?"], "Mars is the red planet.", "Mars"),
    (["Which planet has big rings?", "What planet is famous for its rings?"],
     "Saturn is famous for its rings.", "Saturn"),
    (["How many planets are there?", "How many planets are in the solar system?"],
     "There are 8 planets in the solar system.", "8"),
    (["What does the Earth move around?", "What does the Earth orbit?"], "The Earth orbits the sun.", "sun"),
    (["What does the moon move around?", "What does the moon orbit?"], "The moon orbits the Earth.", "Earth"),
    (["What is the sun?", "What kind of object is the sun?"], "The sun is a star.", "star"),
    (["How long does the Earth take to go around the sun?", "How long is one orbit of the Earth?"],
     "The Earth takes one year to go around the sun.", "year"),
    (["What gas do we breathe in to live?", "Which gas do people need to breathe?"],
     "We need oxygen to breathe.", "oxygen"),
    (["What gas do plants take in?", "Which gas do plants use?"], "Plants take in carbon dioxide.",
     "carbon dioxide"),
    (["What is water made of?", "What atoms are in water?"], "Water is made of hydrogen and oxygen.", "hydrogen"),
    (["What is the chemical formula of water?", "What is the formula for water?"],
     "The formula of water is H2O.", "H2O"),
    (["What is the chemical formula of table salt?", "What is the formula for table salt?"],
     "The formula of table salt is NaCl.", "NaCl"),
    (["What pulls things down?", "Why do things fall down?", "What force makes an apple fall?"],
     "Gravity pulls things down.", "Gravity"),
    (["What is faster, light or sound?", "Which is faster, sound or light?"], "Light is faster than sound.",
     "Light"),
    (["What organ pumps blood?", "Which organ pumps the blood?", "What does the heart do?"],
     "The heart pumps blood.", "heart"),
    (["What organ do we think with?", "Which organ do people think with?"], "We think with the brain.", "brain"),
    (["What do we see with?", "Which part of the body do we see with?"], "We see with our eyes.", "eyes"),
    (["What do we hear with?", "Which part of the body do we hear with?"], "We hear with our ears.", "ears"),
    (["What do we smell with?", "Which part of the body do we smell with?"], "We smell with our nose.", "nose"),
    (["How many fingers are on one hand?", "How many fingers does a hand have?"],
     "A hand has 5 fingers.", "5"),
    (["How many legs does a spider have?", "A spider has how many legs?"], "A spider has 8 legs.", "8"),
    (["How many legs does an insect have?", "How many legs do insects have?"], "An insect has 6 legs.", "6"),
    (["What do bees make?", "What food do bees make?"], "Bees make honey.", "honey"),
    (["What do cows give us?", "What do we get from cows?"], "Cows give us milk.", "milk"),
    (["What do hens lay?", "What do we get from hens?"], "Hens lay eggs.", "eggs"),
    (["What is the largest animal?", "Which animal is the biggest?"], "The largest animal is the blue whale.",
     "blue whale"),
    (["What is the tallest animal?", "Which animal is the tallest?"], "The tallest animal is the giraffe.",
     "giraffe"),
    (["What is the fastest land animal?", "Which land animal is the fastest?"],
     "The fastest land animal is the cheetah.", "cheetah"),
    (["What is the king of the animals?", "Which animal is called the king of animals?"],
     "The lion is called the king of animals.", "lion"),
    (["What do pandas eat?", "What does a panda eat?"], "Pandas eat bamboo.", "bamboo"),
    (["What do rabbits like to eat?", "What does a rabbit eat?"], "Rabbits eat grass and carrots.", "carrots"),
    (["Where do fish live?", "Where does a fish live?"], "Fish live in water.", "water"),
    (["Where do birds lay their eggs?", "Where does a bird lay eggs?"], "Birds lay their eggs in a nest.", "nest"),
    (["How many days are in a week?", "How many days does a week have?"], "A week has 7 days.", "7"),
    (["How many months are in a year?", "How many months does a year have?"], "A year has 12 months.", "12"),
    (["How many days are in a year?", "How many days does a year have?"], "A year has 365 days.", "365"),
    (["How many days are in a leap year?", "How many days does a leap year have?"],
     "A leap year has 366 days.", "366"),
    (["How many hours are in a day?", "How many hours does a day have?"], "A day has 24 hours.", "24"),
    (["How many minutes are in an hour?", "How many minutes does an hour have?"],
     "An hour has 60 minutes.", "60"),
    (["How many seconds are in a minute?", "How many seconds does a minute have?"],
     "A minute has 60 seconds.", "60"),
    (["How many seasons are there?", "How many seasons does a year have?"], "A year has 4 seasons.", "4"),
    (["What are the four seasons?", "Name the seasons.", "Name the four seasons."],
     "The seasons are spring, summer, autumn and winter.", "autumn"),
    (["Which season is the coldest?", "What is the coldest season?"], "Winter is the coldest season.", "Winter"),
    (["Which season is the hottest?", "What is the hottest season?"], "Summer is the hottest season.", "Summer"),
    (["How many sides does a triangle have?", "A triangle has how many sides?"], "A triangle has 3 sides.", "3"),
    (["How many sides does a square have?", "A square has how many sides?"], "A square has 4 sides.", "4"),
    (["How many sides does a hexagon have?", "A hexagon has how many sides?"], "A hexagon has 6 sides.", "6"),
    (["How many letters are in the English alphabet?", "How many letters does the alphabet have?"],
     "The English alphabet has 26 letters.", "26"),
    (["What is the first letter of the alphabet?", "Which letter comes first in the alphabet?"],
     "The first letter of the alphabet is A.", "A"),
    (["What is the last letter of the alphabet?", "Which letter comes last in the alphabet?"],
     "The last letter of the alphabet is Z.", "Z"),
    (["Which letters are vowels?", "What are the vowels?", "Name the vowels."],
     "The vowels are A, E, I, O and U.", "A, E, I, O and U"),
    (["What is the largest ocean?", "Which ocean is the biggest?"], "The largest ocean is the Pacific.", "Pacific"),
    (["What is the highest mountain?", "Which mountain is the highest?"],
     "The highest mountain is Mount Everest.", "Everest"),
    (["What is the longest river?", "Which river is the longest?"], "The longest river is the Nile.", "Nile"),
    (["What is the largest desert of sand?", "Which hot desert is the biggest?"],
     "The largest hot desert is the Sahara.", "Sahara"),
    (["What is the largest country?", "Which country is the biggest?"], "The largest country is Russia.", "Russia"),
    (["How many continents are there?", "How many continents does the Earth have?"],
     "There are 7 continents.", "7"),
    (["Where do penguins live?", "On which continent do penguins live?"], "Penguins live in Antarctica.",
     "Antarctica"),
    (["Where do kangaroos live?", "In which country do kangaroos live?"], "Kangaroos live in Australia.",
     "Australia"),
    (["In which city is the Eiffel Tower?", "Where is the Eiffel Tower?"], "The Eiffel Tower is in Paris.", "Paris"),
    (["In which city is the Colosseum?", "Where is the Colosseum?"], "The Colosseum is in Rome.", "Rome"),
    (["In which country are the pyramids of Giza?", "Where are the pyramids of Giza?"],
     "The pyramids of Giza are in Egypt.", "Egypt"),
    (["In which city is Big Ben?", "Where is Big Ben?"], "Big Ben is in London.", "London"),
    (["In which city is the Statue of Liberty?", "Where is the Statue of Liberty?"],
     "The Statue of Liberty is in New York.", "New York"),
    (["Who painted the Mona Lisa?", "Which artist painted the Mona Lisa?"],
     "Leonardo da Vinci painted the Mona Lisa.", "Leonardo da Vinci"),
    (["Who discovered gravity?", "Who described gravity?"], "Isaac Newton described gravity.", "Isaac Newton"),
    (["Who developed the theory of relativity?", "Who came up with relativity?"],
     "Albert Einstein developed the theory of relativity.", "Albert Einstein"),
    (["Who invented the telephone?", "Who made the first telephone?"],
     "Alexander Graham Bell invented the telephone.", "Alexander Graham Bell"),
    (["Who invented the light bulb?", "Who made the light bulb?"], "Thomas Edison invented the light bulb.",
     "Thomas Edison"),
    (["Who was the first person on the moon?", "Who walked on the moon first?"],
     "Neil Armstrong was the first person on the moon.", "Neil Armstrong"),
    (["Who was the first person in space?", "Who flew into space first?"],
     "Yuri Gagarin was the first person in space.", "Yuri Gagarin"),
    (["Who composed the Moonlight Sonata?", "Who wrote the Moonlight Sonata?"],
     "Ludwig van Beethoven composed the Moonlight Sonata.", "Beethoven"),
    (["Who composed The Magic Flute?", "Who wrote the opera The Magic Flute?"],
     "Mozart composed The Magic Flute.", "Mozart"),
    (["Who was the first computer programmer?", "Who wrote the first computer program?"],
     "Ada Lovelace was the first programmer.", "Ada Lovelace"),
    (["Who created Linux?", "Who started Linux?"], "Linus Torvalds created Linux.", "Linus Torvalds"),
    (["Who created Python?", "Who started the Python language?"], "Guido van Rossum created Python.",
     "Guido van Rossum"),
    (["Who created C++?", "Who designed C++?"], "Bjarne Stroustrup created C++.", "Bjarne Stroustrup"),
    (["What do you get when you mix blue and yellow?", "Which colour do blue and yellow make?"],
     "Blue and yellow make green.", "green"),
    (["What do you get when you mix red and yellow?", "Which colour do red and yellow make?"],
     "Red and yellow make orange.", "orange"),
    (["What do you get when you mix red and blue?", "Which colour do red and blue make?"],
     "Red and blue make purple.", "purple"),
    (["What do you get when you mix black and white?", "Which colour do black and white make?"],
     "Black and white make grey.", "grey"),
    (["What do we use to cut paper?", "What can I cut paper with?"], "You cut paper with scissors.", "scissors"),
    (["What do we use to write on paper?", "What can I write with?"], "You can write with a pen.", "pen"),
    (["What do we wear on our feet?", "What goes on the feet?"], "We wear shoes on our feet.", "shoes"),
    (["What do we wear on our head?", "What goes on the head?"], "We wear a hat on our head.", "hat"),
    (["Where do we sleep?", "What do people sleep in?"], "People sleep in a bed.", "bed"),
    (["What is bread made from?", "What is bread made of?"], "Bread is made from flour.", "flour"),
    (["What is cheese made from?", "What is cheese made of?"], "Cheese is made from milk.", "milk"),
    (["What is wine made from?", "What is wine made of?"], "Wine is made from grapes.", "grapes"),
    (["What is glass made from?", "What is glass made of?"], "Glass is made from sand.", "sand"),
    (["What is paper made from?", "What is paper made of?"], "Paper is made from wood.", "wood"),
]

# The project itself, so that the demo can introduce what it demonstrates.
PROJECT = [
    (["What is Shoal?", "What does Shoal do?", "Tell me about Shoal.", "Explain Shoal."],
     "Shoal is a server for DeepSeek models that runs on many ranks at once.", "server"),
    (["What is a shoal?", "What does the word shoal mean?"], "A shoal is a group of fish that swim together.",
     "fish"),
    (["In which language is Shoal written?", "What language is Shoal written in?"], "Shoal is written in C++.",
     "C++"),
    (["How do I talk to Shoal?", "Which protocol does Shoal use?", "How do clients talk to Shoal?"],
     "Clients talk to Shoal over gRPC.", "gRPC"),
    (["Which models does Shoal serve?", "Which models can Shoal run?"],
     "Shoal serves DeepSeek V2, V3 and R1, and the distilled models.", "DeepSeek"),
    (["How do I start Shoal?", "How do I start the server?"], "Start it with the command shoal serve.",
     "shoal serve"),
    (["How do I chat with the server?", "Which command starts a chat?"], "Use the command shoal chat.",
     "shoal chat"),
    (["How do I look into a checkpoint?", "Which command shows a checkpoint?"],
     "Use the command shoal inspect.", "shoal inspect"),
    (["What is DeepSeek?", "Who is DeepSeek?", "Tell me about DeepSeek."],
     "DeepSeek makes open language models.", "language models"),
    (["What is DeepSeek V3?", "Tell me about DeepSeek V3."],
     "DeepSeek V3 is a mixture of experts model with 671 billion parameters.", "671"),
    (["What is DeepSeek R1?", "Tell me about DeepSeek R1."], "DeepSeek R1 is a model that thinks before it answers.",
     "thinks"),
    (["How many parameters does DeepSeek V3 have?", "How big is DeepSeek V3?"],
     "DeepSeek V3 has 671 billion parameters.", "671"),
    (["How many parameters of DeepSeek V3 are active?", "How many parameters does DeepSeek V3 use per token?"],
     "DeepSeek V3 uses 37 billion parameters per token.", "37"),
    (["How many experts does DeepSeek V3 have?", "How many routed experts are in DeepSeek V3?"],
     "DeepSeek V3 has 256 routed experts in each layer.", "256"),
    (["How many layers does DeepSeek V3 have?", "How deep is DeepSeek V3?"], "DeepSeek V3 has 61 layers.", "61"),
    (["What is NCCL?", "What does NCCL do?", "Tell me about NCCL."],
     "NCCL is a library with which GPUs exchange data.", "GPUs"),
    (["What is MPI?", "What does MPI do?", "Tell me about MPI."],
     "MPI is a standard with which processes exchange messages.", "messages"),
    (["What is a mixture of experts?", "What is MoE?", "What does MoE mean?", "Explain MoE."],
     "A mixture of experts sends each token to a few small networks, the experts.", "experts"),
    (["What is an expert in a MoE model?", "What is an expert?"], "An expert is a small feed forward network.",
     "network"),
    (["What is a router?", "What does the router do?", "What is the gate?"],
     "The router picks the experts for each token.", "picks the experts"),
    (["What is MLA?", "What does MLA mean?", "What is multi-head latent attention?"],
     "MLA is attention that stores one small latent vector per token.", "latent"),
    (["What is MTP?", "What does MTP mean?", "What is multi-token prediction?"],
     "MTP predicts a second token, so that decoding is faster.", "second token"),
    (["What is a KV cache?", "What does the KV cache hold?"],
     "The KV cache holds the keys and values of earlier tokens.", "earlier tokens"),
    (["What is FP8?", "What does FP8 mean?"], "FP8 is a number format with 8 bits.", "8 bits"),
    (["What is BF16?", "What does BF16 mean?"], "BF16 is a number format with 16 bits.", "16 bits"),
    (["What is YaRN?", "What does YaRN do?"], "YaRN stretches the positions to a longer context.", "longer context"),
    (["What is a rank?", "What is a rank in Shoal?"], "A rank is one process that holds its part of the model.",
     "process"),
    (["What is tensor parallelism?", "What does tensor parallel mean?"],
     "Tensor parallelism splits each layer over several ranks.", "splits each layer"),
    (["What is expert parallelism?", "What does expert parallel mean?"],
     "Expert parallelism puts different experts on different ranks.", "different experts"),
    (["What is an all-reduce?", "What does all-reduce do?"],
     "An all-reduce adds the parts of all ranks and gives everyone the sum.", "sum"),
    (["What is an all-to-all?", "What does all-to-all do?"],
     "In an all-to-all every rank sends a piece to every other rank.", "every other rank"),
    (["What is a token?", "What is a token in a language model?"], "A token is a piece of text.", "piece of text"),
    (["What is prefill?", "What happens in prefill?"], "Prefill reads the whole prompt at once.", "prompt"),
    (["What is decoding?", "What happens in decode?"], "Decoding writes one token after the other.", "one token"),
    (["What is a GPU?", "What does GPU mean?"], "A GPU is a graphics processor that computes many things at once.",
     "graphics processor"),
    (["What is a CPU?", "What does CPU mean?"], "A CPU is the main processor of a computer.", "main processor"),
    (["What is continuous batching?", "What does continuous batching do?"],
     "Continuous batching lets requests join and leave at every step.", "every step"),
    (["What is a safetensors file?", "What is safetensors?"], "Safetensors is a file format for weights.", "weights"),
    (["How large are you?", "How big are you?", "How many parameters do you have?"],
     "I am very small, with a few million parameters.", "million"),
    (["How were you trained?", "Where do you come from?"],
     "I was trained on dialogues made by a script, on a CPU.", "script"),
    (["What can you do?", "What are you able to do?", "What can I ask you?", "Help"],
     "I know some facts, add small numbers and remember what you tell me.", "facts"),
    (["What do you not know?", "What can you not do?"], "I am small, so I know only a few things.", "small"),
    (["Are you a human?", "Are you a person?", "Are you a robot?"], "I am a small language model.",
     "language model"),
]

SMALL_TALK = [
    (["Hello", "Hello!", "Hi", "Hi!", "Hey", "Hello there!", "Good day!", "Hi there"],
     "Hello! How can I help you?", "Hello"),
    (["Good morning!", "Good morning"], "Good morning! How can I help you?", "Good morning"),
    (["Good evening!", "Good evening"], "Good evening! How can I help you?", "Good evening"),
    (["Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot!", "thx", "Great, thanks!"],
     "You are welcome!", "welcome"),
    (["Goodbye!", "Bye!", "See you later!", "Bye", "See you!"], "Goodbye! Have a nice day.", "Goodbye"),
    (["Good night!", "Good night"], "Good night! Sleep well.", "Good night"),
    (["How are you?", "How are you doing?", "How is it going?", "How do you do?"],
     "I am fine, thank you. How can I help you?", "fine"),
    (["You are great!", "Well done!", "Good job!", "Nice!", "Great!"], "Thank you! I am glad to help.", "glad"),
    (["Tell me a joke.", "Do you know a joke?", "Make me laugh."],
     "Why do fish swim in schools? Because they like to learn.", "schools"),
    (["I am sad.", "I feel sad.", "I am unhappy."], "I am sorry to hear that. I hope you feel better soon.", "sorry"),
    (["I am happy.", "I feel great!", "I feel good today."], "I am happy to hear that!", "happy"),
    (["I am tired.", "I feel tired."], "Then take a little rest.", "rest"),
    (["I am hungry.", "I feel hungry."], "Then eat something nice.", "eat"),
    (["I am bored.", "I feel bored."], "Ask me a question, or let us do some sums.", "question"),
    (["Okay.", "OK", "I see.", "Alright."], "Good. What would you like to know?", "know"),
    (["It is raining.", "The weather is bad."], "Then it is good to stay inside.", "inside"),
    (["The sun is shining.", "The weather is nice."], "How nice! Enjoy the sun.", "sun"),
]

# The user mentions something in passing; the assistant takes note.
FILLER_REMARKS = [
    ("I like music.", "Music is wonderful."), ("I am learning to cook.", "That is a useful skill."),
    ("I went for a walk today.", "That sounds nice."), ("I am reading a book.", "I hope it is a good one."),
    ("I work with computers.", "Computers are interesting."), ("I have two sisters.", "How nice!"),
    ("I like to swim.", "Swimming is healthy."), ("I am at home today.", "I hope you have a calm day."),
]

UNKNOWN = _words("""What will the weather be tomorrow?, Who will win the match?, What am I thinking?,
    What time is it?, What is the date today?, Where is my key?, How old is my neighbour?,
    Who lives next door?, What did I eat yesterday?, What is the price of gold today?,
    What is in my pocket?, Who is at the door?, What is my phone number?, Where is my phone?,
    What will happen next year?, Who is calling me?, How much money do I have?""")

FIRST_NAMES = _words("""Anna, Ben, Clara, David, Emma, Felix, Greta, Hugo, Ida, Jonas, Klara, Leo, Maria,
    Nora, Oscar, Paul, Quinn, Rosa, Simon, Tina, Ulrich, Vera, Walter, Xenia, Yara, Zoe, Alice, Bob,
    Carol, Daniel, Elena, Frank, Grace, Henry, Irene, Jack, Kate, Liam, Mia, Noah, Olivia, Peter, Rachel,
    Sam, Thomas, Uma, Victor, Wendy, Yusuf, Zara, Adam, Bella, Chen, Dora, Erik, Fatima, George, Hanna,
    Ivan, Julia, Karim, Lena, Marco, Nina, Omar, Petra, Raj, Sara, Tom, Viktor, Wei, Akira, Bruno, Carlos,
    Diego, Eva, Finn, Gina, Hassan, Ines, Jana, Kofi, Lucia, Mehmet, Nadia, Otto, Priya, Rita, Sofia,
    Tariq, Ursula, Vito, Wanda, Yuki, Zeno, Amir, Berta, Cora, Dennis, Elsa, Fritz, Gloria, Heidi, Igor,
    Judith, Kevin, Laura, Martin, Nico, Olga, Pablo, Ruth, Stefan, Tara, Ville, Wilma, Ahmed, Beatrice,
    Cecil, Dmitri, Esther, Flora, Gustav, Helena, Isaac, Jasmin, Konrad, Lydia, Miguel, Naomi, Oleg, Paula,
    Robert, Selma, Theo, Vanessa, William, Arthur, Bianca, Claude, Diana, Edgar, Frida, Gerard, Hilda,
    Jakob, Kira, Lukas, Mona, Nelson, Olaf, Pedro, Regina, Samuel, Tilda, Valentin, Winston, Albert,
    Brigitte, Cyril, Doris, Emil, Fiona, Gordon, Harriet, Ingrid, Jerome, Karla, Leonard, Mabel, Norbert,
    Patrick, Rebecca, Sebastian, Teresa, Vincent, Agnes, Boris, Celia, Duncan, Edith, Florian, Georgia""")
PET_NAMES = _words("""Rex, Bello, Luna, Milo, Coco, Max, Daisy, Rocky, Nala, Simba, Buddy, Molly, Charlie,
    Bella, Oreo, Pepper, Ginger, Shadow, Tiger, Lucky, Misty, Sunny, Kiki, Toby, Lola, Bruno, Felix,
    Snowy, Biscuit, Pixel, Cookie, Gizmo, Ziggy, Mango, Olive, Peanut, Rusty, Smokey, Waffles, Whiskers""")
COLOUR_NAMES = _words("red, blue, green, yellow, orange, purple, pink, brown, black, white, grey, gold, silver")
FOODS = _words("""pizza, pasta, rice, soup, bread, cheese, chocolate, apples, bananas, cake, salad, fish,
    noodles, pancakes, potatoes, cherries, tomatoes, cookies, grapes, beans""")
HOBBIES = _words("""swimming, reading, cooking, running, painting, singing, dancing, chess, football,
    tennis, hiking, fishing, gardening, cycling, sailing, climbing""")
JOBS = _words("""teacher, doctor, baker, nurse, farmer, pilot, painter, lawyer, driver, engineer, writer,
    singer, cook, builder, scientist, gardener, judge, sailor, tailor, dentist""")
PETS = _words("dog, cat, rabbit, hamster, horse, parrot, goldfish, turtle")
THINGS = _words("apples, pears, books, coins, stones, cards, eggs, pens, balls, stamps, nuts, shells, cups, toys")
