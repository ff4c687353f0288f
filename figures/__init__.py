"""Figures and tables of the paper, one module each: from results frames to pictures.

``numbers(frames...)`` computes once what the CSV file holds; ``plot(numbers)`` or
``table(numbers)`` shows it. The frames are those of ``fedecider.results``; labels, families,
colours and the order of methods come with them. Layouts follow the captions of the paper
(FeDecider, arXiv 2602.16034); what the captions leave open is our own
reconstruction, said in each module.
"""
