"""Moves the bytes of one volume: NBD export → qcow2 layer on the NAS, and back again to check it.

``copy.copy_layer`` writes a layer, ``readback.read_layer`` reads it back and yields the same digest,
``convert.flatten`` turns a chain into one standalone image. Everything else here serves these three.
"""
