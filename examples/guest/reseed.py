#!/usr/bin/env python3
"""Shows which random numbers are the same in every clone, and how a program gets its own.

usage: reseed.py [COUNT [FILE]]      Each copy writes: alike NUMBER BYTES own NUMBER BYTES
"""
import os
import random
import ssl
import sys

from fork import Agent


def draw():
    return f'{random.getrandbits(64)} {ssl.RAND_bytes(16).hex()}'


def main(count=1, path='/dev/stdout'):
    draw()  # From here on both generators have a state in this program's memory.
    Agent().call('clone', count=int(count))
    alike = draw()
    random.seed()
    ssl.RAND_add(os.urandom(32), 32.0)
    with open(path, 'w') as told:
        print('alike', alike, 'own', draw(), file=told)


if __name__ == '__main__':
    main(*sys.argv[1:3])
