"""The gateway: shows mosaics in a browser while they grow, and serves them to viewers that people already have.

`tilecast web` is a process of its own, which reads the store and the notifications like any other viewer; if it dies,
acquisition does not notice. It needs the extra `web`; without it the daemon works, and the command says what to
install.

* `command`: `tilecast web`, quick to import; `serving`: the server process; `settings`: what it was told;
* `app`: puts everything together; `gateway`: what the endpoints share; `access`: who may ask, and how refusals look;
* `sources`: runs and tiles from the store on this machine, or from a daemon on another; `news`: what it announces;
* `pixels`, `rendering`, `encoding`: from tiles to arrays, to pictures, to bytes; `caching`: ETag and 304;
* `api`, `looks`: `/api/v1`; `events`: server-sent events; other modules: one per family of viewers, and the page.
"""
