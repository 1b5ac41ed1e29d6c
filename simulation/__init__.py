"""Aerial frames of road junctions, simulated with Eclipse SUMO: how the `junctions` data is made.

    python -m venv sumo && sumo/bin/pip install eclipse-sumo==1.28.0 libsumo==1.28.0 \\
        pyrosm==0.25.0 osmium==4.3.1 pillow scipy scikit-learn pandas numpy
    sumo/bin/python -m simulation simulate --out WORK   # every city and day
    sumo/bin/python -m simulation headroom --out WORK   # majority, repeat the present, trees
    sumo/bin/python -m simulation ship     --out WORK   # the files of data/junctions
    sumo/bin/python -m simulation own      --out WORK --map MY_CITY.osm.pbf   # another city

Run from the root of the repository. `own` writes to WORK only. Nobody needs SUMO to use the shipped
files. `simulate` also makes the frames of the source cities, on which `city_resnet` is pretrained.

A city (`cities`) becomes a road network with chosen junctions (`network`). The ground of each
junction is drawn once (`ground`), vehicles and lamps on top of it for each frame (`painter`).
`demand` invents weather, incidents and trips; `traffic` simulates the days and writes one file for
each. `labels` turns such a file into frames, labels and the table of a perfect detector.
`publishing` writes the shipped files, `own_city` those of a city that is not part of the data.
"""
