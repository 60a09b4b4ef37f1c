# ruff: noqa: E501, RUF001, PLE2502  # odd characters are what this file is for
"""URLs that parsers disagree about. `A` is allowed, `X` is not; both resolve to origins that say they were reached."""

A = "api.allowed.test"
X = "hidden.test"

URLS = [
    # Plain.
    f"http://{A}/", f"http://{A}", f"http://{A}:80/", f"http://{A}:8080/", f"http://{A}:443/", f"https://{A}/", f"http://{X}/",
    f"HTTP://{A}/", f"http://{A.upper()}/", f"http://{A}./", f"http://{A}../", f"http://.{A}/", f"http://{X}./",
    # Fragments, queries and slashes that end a host for some.
    f"http://{X}#.{A}/", f"http://{X}#@{A}/", f"http://{A}#@{X}/", f"http://{X}?.{A}/", f"http://{X}?@{A}/", f"http://{A}?@{X}/",
    f"http://{X}/.{A}/", f"http://{X};.{A}/", f"http:/{A}/", f"http:{A}/", f"http:///{A}/", f"http:////{X}/", f"//{X}/",
    # Backslashes.
    f"http://{X}\\.{A}/", f"http://{X}\\@{A}/", f"http://{A}\\@{X}/", f"http:\\\\{X}/", f"http://{A}\\.{X}/",
    # User information.
    f"http://{A}@{X}/", f"http://{A}:80@{X}/", f"http://{A}%40{X}/", f"http://{A}:@{X}/", f"http://@{X}/", f"http://{A}@{A}@{X}/",
    # Escapes in the host.
    f"http://{X}%2f.{A}/", f"http://{X}%23.{A}/", f"http://{X}%00.{A}/", f"http://{X}%0d%0a.{A}/", f"http://{X}%252f.{A}/",
    "http://api%2eallowed%2etest/", "http://hidden%2etest/", f"http://{X}%5c.{A}/",
    # Internationalised names and look-alikes.
    "http://ａｐｉ.allowed.test/", "http://hidden。test/", "http://hidden．test/", "http://ⓗidden.test/", "http://xn--hidden-.test/",
    "http://hid­den.test/", "http://faß.test/", "http://xn--fa-hia.test/", "http://api.allowed.test‏/",
    # Numbers.
    "http://127.0.0.1/", "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/", "http://127.1/", "http://0/",
    "http://169.254.169.254/", "http://169.254.43518/", "http://0xa9fea9fe/", "http://１２７.0.0.1/",
    # IPv6 and zones.
    "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[fe80::1%25lo]/", "http://[fe80::1%lo]/", "http://[::1%251]/",
    f"http://[{A}]/", f"http://[::1]{A}/", "http://[::1]:80/", "http://[0:0:0:0:0:ffff:a9fe:a9fe]/", "http://::1/",
    # Ports.
    f"http://{A}:0/", f"http://{A}:65536/", f"http://{A}:80:80/", f"http://{A}:+80/", f"http://{A}:٨٠/", f"http://{A}:/",
    f"http://{A}:080/", f"http://{A}:80a/", f"http://{A}: 80/",
    # Controls and spaces.
    f"http://{X}\t.{A}/", f"http://{X} .{A}/", f" http://{X}/", f"http://{X}\x0b/", f"http://{A}/\x7f", f"http://\x00{A}/",
    # Other schemes.
    f"ftp://{A}/", f"gopher://{X}/", f"file://{A}/etc/passwd", f"javascript://{A}/", f"httpss://{A}/", f"ws://{A}/",
]  # fmt: skip
