"""Takes the pictures of the page that docs show. Run as: page_pictures.py PROGRAM MODEL FOLDER"""

import sys
from pathlib import Path

import browser
import running

CLASS = "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n"
LOAD = "import json\n\n\ndef load_config(path):\n"
DONE = "document.getElementById('text').getAttribute('aria-busy') === 'false'"


def take(page, server, folder):
    def open_as(theme, **settings):
        page.media(prefers_color_scheme=theme)
        page.open(server.url + "/")
        page.wait_until("document.getElementById('model').value")
        for name, value in settings.items():
            page.value(f"document.querySelector('#settings-form [name={name}]').value = '{value}'")

    def write(text):
        page.value("document.getElementById('input').focus(); document.getElementById('input').select()")
        page.type(text)
        page.press("Enter")

    page.size(1200, 760)
    open_as("light", max_tokens=72)
    for _ in range(3):  # the first answers teach the server what its steps cost
        write(CLASS)
        page.wait_until(DONE)
    page.picture(folder / "page-light.png")

    open_as("dark", max_tokens=1500, temperature=0.7, seed=11)
    write(LOAD)
    page.wait_until("document.querySelectorAll('.passage .token').length > 20")
    page.picture(folder / "page-dark.png")
    page.press("Escape")
    page.wait_until(DONE)

    page.size(390, 800)
    open_as("light", max_tokens=120)
    page.click("[name=mode][value=chat] + span")
    write("Write a function that adds two numbers.")
    page.wait_until(DONE)
    page.value("scrollTo(0, 0)")
    page.picture(folder / "page-narrow.png")


if __name__ == "__main__":
    running.program, running.model = sys.argv[1:3]
    window = browser.Browser()
    with running.Server() as running_server:
        take(browser.Page(window), running_server, Path(sys.argv[3]))
    window.close()
