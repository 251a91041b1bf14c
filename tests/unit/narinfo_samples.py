"""Descriptions of paths as Nix 2.8 wrote them into a binary cache, with the key that signed some of them."""

from typing import Final

from nixfleet_agent.activation.cache_keys import CacheKey, TrustedKeys
from state_machine.values import Closure

STORE: Final = "/srv/lab/store"
TRUSTED: Final = TrustedKeys.parse(["cache.test-1:zM9+uNm+mBnxVd1AjwgKJOG8yUy7fx/ABzIca+scvzw="])
KEY: Final = CacheKey(name="cache.test-2", seed=bytes(range(32)))
"""One of the tests' own, to sign with."""

DEP: Final = b"""\
StorePath: /srv/lab/store/mvgmd96la58h5p76j3v701vnrnw13zln-dep
URL: nar/0ga7z2lm0kccx7025f6lqq0yylg8lxb458li37wrm8lyca3ld4h0.nar
Compression: none
FileHash: sha256:0ga7z2lm0kccx7025f6lqq0yylg8lxb458li37wrm8lyca3ld4h0
FileSize: 328
NarHash: sha256:0ga7z2lm0kccx7025f6lqq0yylg8lxb458li37wrm8lyca3ld4h0
NarSize: 328
References: 9i027yfjid6xg5hg2mgcpf0srxrdfp94-flat mvgmd96la58h5p76j3v701vnrnw13zln-dep \
xs08gwpi7j856hygifniinwsa2pzj29d-t.txt zzfw6b1q7xb7nr68ak0k099shp8ib4jj-src
Deriver: l3iz6w1wdgb13r9s2a76x11nd22vc3fr-dep.drv
Sig: cache.test-1:9PclQqE5LxLtxKtBJWn6/8fwYcuJOcBks2DuA5radSlF6BbOxV6SrqKVFCYhYgRojJz6b85L4DyOZPqB2WI4DA==
"""
SYSTEM: Final = b"""\
StorePath: /srv/lab/store/kwxnmjn3z9myvixk519z5zbzsaffyvsz-system
URL: nar/0kwr979f5r1l45q7hw7vg67rhmhfy3ylg302jvyfqnabqw29zkgg.nar
Compression: none
FileHash: sha256:0kwr979f5r1l45q7hw7vg67rhmhfy3ylg302jvyfqnabqw29zkgg
FileSize: 1000
NarHash: sha256:0kwr979f5r1l45q7hw7vg67rhmhfy3ylg302jvyfqnabqw29zkgg
NarSize: 1000
References:\x20
Deriver: 4pkjchcb6isiyfafy76lj58s05ppsva0-system.drv
Sig: cache.test-1:uyb5dwYTJM2QPlh6PB7I4htomXZROscs2g3h3wFKpEMiBKGz77UxmPNRiMW3CRvnb3rACUWqQ0sCaLSN+FmhDg==
"""
TEXT: Final = b"""\
StorePath: /srv/lab/store/xs08gwpi7j856hygifniinwsa2pzj29d-t.txt
URL: nar/0sg9f58l1jj88w6pdrfdpj5x9b1zrwszk84j81zvby36q9whhhqa.nar
Compression: none
FileHash: sha256:0sg9f58l1jj88w6pdrfdpj5x9b1zrwszk84j81zvby36q9whhhqa
FileSize: 120
NarHash: sha256:0sg9f58l1jj88w6pdrfdpj5x9b1zrwszk84j81zvby36q9whhhqa
NarSize: 120
References:\x20
CA: text:sha256:094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic
"""
SOURCE: Final = b"""\
StorePath: /srv/lab/store/zzfw6b1q7xb7nr68ak0k099shp8ib4jj-src
URL: nar/04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw.nar
Compression: none
FileHash: sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw
FileSize: 120
NarHash: sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw
NarSize: 120
References:\x20
CA: fixed:r:sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw
"""
FLAT: Final = b"""\
StorePath: /srv/lab/store/9i027yfjid6xg5hg2mgcpf0srxrdfp94-flat
URL: nar/04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw.nar
Compression: none
FileHash: sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw
FileSize: 120
NarHash: sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw
NarSize: 120
References:\x20
CA: fixed:sha256:00xyyr3fi8l6hb839bv3f7yb86yjv7xi1cgh1xnhipym4asvb4aq
"""
FIXED: Final = b"""\
StorePath: /srv/lab/store/4q6vb5v1v1z5lfgi2102mb5qhkvxy3bq-fo
URL: nar/04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw.nar
Compression: none
FileHash: sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw
FileSize: 120
NarHash: sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw
NarSize: 120
References:\x20
Deriver: s128plwsgib58xdgnii6qx3ziik68h9j-fo.drv
Sig: cache.test-1:77cOZVnqL2QRxsHHwNQpahFe+TVDtVdQ3U4X6EaYu8rIWfK9N8o6fQ41PhMDKFpwiEgYvOWzWfFdmAx4wqebBg==
CA: fixed:sha1:iwjz551fyw0cxcjgf4l6c879zabd6wpm
"""


def described(narinfo: bytes) -> Closure:
    """The path that a description is of."""
    return Closure(narinfo.split(b"\n")[0].decode().rpartition("/")[2])
