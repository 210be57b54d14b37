"""A web process without the web: each order is a WSGI request to the project, as its server would hand it over."""

import io
import json
import sys
import time

from proj.wsgi import application


def post(path):
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": path,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "CONTENT_LENGTH": "0",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
    }
    status = []
    response = application(environ, lambda line, headers, exc_info=None: status.append(int(line.split()[0])))
    try:
        b"".join(response)
    finally:
        response.close()
    return status[0]


first, last, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
for number in range(first, last):
    started = time.monotonic()
    status = post(f"/orders/{number}")
    took = time.monotonic() - started
    print(json.dumps({"number": number, "status": status, "took": round(took, 3)}), flush=True)
    time.sleep(pause)
