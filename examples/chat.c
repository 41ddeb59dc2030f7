/* Chat over a connection that punchd makes: chat.py in C, to show the line protocol without a library.
 *
 *     cc -std=c11 -Wall -Wextra -Werror -O2 -o chat chat.c
 *     chat HOST:PORT [CALL [SOCKET]]     HOST:PORT: of punchd-rendezvous; CALL: the id of whom to call, - to be called
 *
 * Lines of standard input go to the other side, what comes from there goes to standard output, news go to standard
 * error. Exit code 0 after a chat, 1 with one line of explanation if there was none. What chat.py says of the first
 * words, lost datagrams, NATs that forget and missing encryption holds here too.
 *
 * With the rendezvous server it speaks the least that works: plain HTTP (everybody on the way can read the key; use
 * the library, or a TLS one, for more than a try), a connection for each request, and plain pulses to the UDP port one
 * below that of HTTP, where the server listens by default.
 *
 * The one thing to get right is how a socket is received. It travels beside the "ok" line, but a read may return it
 * together with the end of earlier lines. So: from the first request on, read the daemon with recvmsg() only, always
 * with room for descriptors, put them into a queue, and let each "ok" line of an attempt take one from its head.
 */
#define _GNU_SOURCE /* struct ucred, MSG_CMSG_CLOEXEC */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define BASE64URL "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
#define HEX "0123456789abcdef"
enum { MAX_LINE = 500, MAX_FIELDS = 12, MAX_FDS = 8, MAX_CHUNK = 1200, MIN_TOKEN = 19, MAX_TOKEN = 200 };
enum { ID_DIGITS = 32, KEY_DIGITS = 64, MAX_ANSWER = 65535, MAX_TEXT = 1024, ANSWER_S = 40, PULSE_MS = 25000 };

/* A connection that is read line by line, and the descriptors that came over it and belong to no line yet. */
struct connection {
    const char *name;
    int fd;
    size_t used, queued;
    char bytes[MAX_LINE + 1];
    int fds[MAX_FDS];
};

static _Noreturn void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("chat: could not connect: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

/* Send one line. */
static void say(const struct connection *to, const char *format, ...) {
    char line[MAX_LINE + 2];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, MAX_LINE + 1, format, arguments);
    va_end(arguments);
    if (length < 0 || length > MAX_LINE)
        fail("a line for %s is too long", to->name);
    line[length++] = '\n';
    for (int sent = 0; sent < length;) {
        ssize_t count = send(to->fd, line + sent, (size_t)(length - sent), MSG_NOSIGNAL);
        if (count < 0)
            fail("%s: %s", to->name, strerror(errno));
        sent += (int)count;
    }
}

/* One recvmsg(): bytes to the buffer, descriptors to the queue. */
static void receive(struct connection *from) {
    union {
        struct cmsghdr aligned;
        char room[CMSG_SPACE(MAX_FDS * sizeof(int))];
    } control;
    struct iovec part = {from->bytes + from->used, sizeof from->bytes - from->used};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t count = recvmsg(from->fd, &message, MSG_CMSG_CLOEXEC);
    if (count < 0)
        fail("%s: %s", from->name, strerror(errno));
    if (count == 0)
        fail("%s closed the connection", from->name);
    from->used += (size_t)count;
    for (struct cmsghdr *rights = CMSG_FIRSTHDR(&message); rights; rights = CMSG_NXTHDR(&message, rights)) {
        size_t fds = (rights->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        if (rights->cmsg_level != SOL_SOCKET || rights->cmsg_type != SCM_RIGHTS)
            continue;
        if (from->queued + fds > MAX_FDS)
            fail("%s sent too many descriptors", from->name);
        memcpy(from->fds + from->queued, CMSG_DATA(rights), fds * sizeof(int));
        from->queued += fds;
    }
    if (message.msg_flags & MSG_CTRUNC)
        fail("%s sent more descriptors than expected", from->name);
}

/* The next complete line of the buffer, cut into its fields; their number, 0 when there is no complete line. */
static int next_line(struct connection *from, char line[MAX_LINE + 1], char *fields[MAX_FIELDS]) {
    char *end = memchr(from->bytes, '\n', from->used);
    if (!end) {
        if (from->used == sizeof from->bytes)
            fail("%s sent a line that is too long", from->name);
        return 0;
    }
    size_t length = (size_t)(end - from->bytes);
    memcpy(line, from->bytes, length);
    line[length] = '\0';
    from->used -= length + 1;
    memmove(from->bytes, end + 1, from->used);
    int count = 0;
    for (char *field = line; field && count < MAX_FIELDS; count++) {
        fields[count] = field;
        if ((field = strchr(field, '|')))
            *field++ = '\0';
    }
    return count;
}

/* Connect to the daemon, and look who listens before a descriptor is taken from it: root, its user, or oneself. */
static int open_daemon(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct ucred listener;
    socklen_t size = sizeof listener;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (strlen(path) >= sizeof address.sun_path)
        fail("the path of punchd's socket is too long: %s", path);
    strcpy(address.sun_path, path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &listener, &size) < 0)
        fail("punchd at %s: %s", path, strerror(errno));
    struct passwd *service = getpwnam("_punchd");
    if (listener.uid != 0 && listener.uid != geteuid() && !(service && listener.uid == service->pw_uid))
        fail("the program at %s runs as uid %u, which is not punchd's", path, (unsigned)listener.uid);
    return fd;
}

/* The rendezvous server, and who we are there. */
struct rendezvous {
    struct addrinfo *at;
    const char *host, *port;
    char id[ID_DIGITS + 1], key[KEY_DIGITS + 1];
    int pulses; /* a UDP socket */
};

static int open_socket(const struct addrinfo *addresses) {
    for (; addresses; addresses = addresses->ai_next) {
        int fd = socket(addresses->ai_family, addresses->ai_socktype | SOCK_CLOEXEC, addresses->ai_protocol);
        if (fd >= 0 && connect(fd, addresses->ai_addr, addresses->ai_addrlen) == 0)
            return fd;
        if (fd >= 0)
            close(fd);
    }
    return -1;
}

static struct addrinfo *resolve(const char *host, const char *port, int type) {
    struct addrinfo hints = {.ai_socktype = type}, *found;
    int code = getaddrinfo(host, port, &hints, &found);
    if (code)
        fail("%s: %s", host, gai_strerror(code));
    return found;
}

/* Send a request; the descriptor to read its answer from. */
static int ask(const struct rendezvous *server, const char *method, const char *path, const char *body) {
    char request[MAX_LINE + MAX_TEXT];
    struct timeval patience = {.tv_sec = ANSWER_S};
    int length = snprintf(request, sizeof request,
                          "%s %s HTTP/1.1\r\nHost: %s:%s\r\nAuthorization: Bearer %s\r\nContent-Type: text/plain\r\n"
                          "Content-Length: %zu\r\nConnection: close\r\n\r\n%s",
                          method, path, server->host, server->port, server->key, strlen(body), body);
    int fd = open_socket(server->at);
    if (fd < 0)
        fail("the rendezvous server at %s port %s: %s", server->host, server->port, strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (length < 0 || (size_t)length >= sizeof request || send(fd, request, (size_t)length, MSG_NOSIGNAL) != length)
        fail("the rendezvous server: a request could not be sent");
    return fd;
}

/* Read an answer to its end and close the connection; the status of HTTP. Only its body is kept. */
static int answer(int fd, char body[MAX_ANSWER + 1]) {
    size_t used = 0;
    ssize_t count;
    int status;
    while ((count = recv(fd, body + used, MAX_ANSWER - used, 0)) > 0)
        used += (size_t)count;
    close(fd);
    body[used] = '\0';
    char *start = strstr(body, "\r\n\r\n");
    if (count < 0 || !start || sscanf(body, "HTTP/1.1 %d", &status) != 1)
        fail("the rendezvous server gave no answer that is one");
    memmove(body, start + 4, strlen(start + 4) + 1);
    return status;
}

/* The text of the next JSON member with this name, at or after `at`; where it ends, NULL if there is none. */
static const char *member(const char *at, const char *name, char *text, size_t size) {
    char quoted[32];
    snprintf(quoted, sizeof quoted, "\"%s\"", name);
    if (!(at = strstr(at, quoted)))
        return NULL;
    at += strlen(quoted);
    at += strspn(at, " :");
    if (*at++ != '"')
        return NULL;
    size_t length = strcspn(at, "\"");
    if (length >= size || memchr(at, '\\', length))
        return NULL;
    memcpy(text, at, length);
    text[length] = '\0';
    return at + length;
}

static _Noreturn void refused(int status, const char *body) {
    char message[MAX_LINE];
    fail("the rendezvous server says: %s (%d)", member(body, "message", message, sizeof message) ? message : "no", status);
}

/* A plain pulse: the key, as 64 digits. It teaches the server our address. */
static void pulse(const struct rendezvous *server) { (void)!send(server->pulses, server->key, KEY_DIGITS, MSG_NOSIGNAL); }

/* Register, and pulse until the server has understood: the code 1020, four bytes big endian. */
static void enter(struct rendezvous *server, char *where) {
    char body[MAX_ANSWER + 1], udp[6];
    unsigned char code[4];
    char *colon = strrchr(where, ':');
    if (!colon || atoi(colon + 1) < 2 || atoi(colon + 1) > 65535)
        fail("expected HOST:PORT, got %s", where);
    *colon = '\0';
    server->host = where;
    server->port = colon + 1;
    server->at = resolve(where, server->port, SOCK_STREAM);
    int status = answer(ask(server, "POST", "/register", ""), body);
    if (status != 200 || !member(body, "client_id", server->id, sizeof server->id) ||
        !member(body, "private_id", server->key, sizeof server->key))
        refused(status, body);
    snprintf(udp, sizeof udp, "%d", (atoi(server->port) - 1) & 0xffff);
    struct addrinfo *at = resolve(where, udp, SOCK_DGRAM);
    struct timeval patience = {.tv_sec = 1};
    server->pulses = open_socket(at);
    freeaddrinfo(at);
    setsockopt(server->pulses, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    for (int tries = 0; tries < 5; tries++) {
        pulse(server);
        if (recv(server->pulses, code, sizeof code, 0) == 4 && code[2] << 8 == 0x300 && code[3] == 0xfc)
            return;
    }
    fail("the rendezvous server does not answer pulses at UDP port %s", udp);
}

/* Send somebody a text; whether there is such a client. */
static bool signal_to(const struct rendezvous *server, const char *peer, const char *text) {
    char body[MAX_ANSWER + 1], path[64 + ID_DIGITS];
    snprintf(path, sizeof path, "/peer/%s/signal", peer);
    int status = answer(ask(server, "POST", path, text), body);
    if (status != 202 && status != 404)
        refused(status, body);
    return status == 202;
}

/* Who wants what from whom. */
struct talk {
    bool calls, is_ipv6, started;
    char peer[ID_DIGITS + 1], port[6]; /* the other side's id; our own local port, when punchd has named it */
};

/* Where the server sees somebody: the only address that a token of theirs may make us send packets to. */
static void look_up(const struct rendezvous *server, const struct talk *talk, char *address, size_t size) {
    char body[MAX_ANSWER + 1], path[64 + ID_DIGITS];
    snprintf(path, sizeof path, "/peer/%s/udp?family=%d", talk->peer, talk->is_ipv6 ? 6 : 4);
    int status = answer(ask(server, "GET", path, ""), body);
    if (status != 200 || !member(body, "host", address, size))
        refused(status, body);
}

/* What others say goes into request lines only if it is what it should be: no '|' slips in. */
static const char *checked(const char *word, const char *allowed, size_t least, size_t most) {
    size_t length = strlen(word);
    if (length < least || length > most || strspn(word, allowed) != length)
        fail("got '%.40s', which is no id, address, port or token", word);
    return word;
}
#define ID(word) checked(word, HEX, ID_DIGITS, ID_DIGITS)
#define ADDRESS(word) checked(word, HEX ".:", 2, 45)
#define PORTS(word) checked(word, "0123456789,-", 1, 80)
#define TOKEN(word) checked(word, BASE64URL, MIN_TOKEN, MAX_TOKEN)

/* What the daemon says; the connected socket when there is one, else -1. "own" and "chat" are our ids. */
static int hear_daemon(struct connection *daemon, const struct rendezvous *server, struct talk *talk) {
    char line[MAX_LINE + 1], text[MAX_LINE + 1], *field[MAX_FIELDS];
    int count;
    while ((count = next_line(daemon, line, field))) {
        if (count >= 8 && !strcmp(field[0], "ok") && !strcmp(field[2], "probe")) {
            /* ok|own|probe|udp|IP|PORTS|MAPPING|LPORT */
            fprintf(stderr, "own address: %s port %s\n", field[4], field[5]);
            talk->is_ipv6 = strchr(field[4], ':') != NULL;
            snprintf(talk->port, sizeof talk->port, "%s", field[7]);
            snprintf(text, sizeof text, "call %s %s", field[4], field[5]);
            if (!talk->calls)
                fprintf(stderr, "waiting as %s\n", server->id);
            else if (!signal_to(server, talk->peer, text))
                fail("nobody has the id %s", talk->peer);
        } else if (count >= 8 && !strcmp(field[0], "ok") && daemon->queued) {
            /* ok|chat|TECHNIQUE|PROTO|IP|PORT|IP|PORT, and the descriptor at the head of the queue */
            fprintf(stderr, "connected by %s to %s port %s\n", field[2], field[6], field[7]);
            return daemon->fds[0];
        } else if (count >= 6 && !strcmp(field[0], "progress")) {
            /* progress|chat|ROUND|TECHNIQUE|STAGE|DETAIL; the detail of "relay" is the token, not for logs */
            bool relay = !strcmp(field[4], "relay");
            fprintf(stderr, "round %s %s: %s %s\n", field[2], field[3], field[4], relay ? "" : field[5]);
            if (relay)
                signal_to(server, talk->peer, field[5]); /* in vain if it has its connection already, and left */
        } else if (count >= 4 && !strcmp(field[0], "error")) {
            fail("%s: %s", field[2], field[3]);
        } else {
            fail("punchd broke the protocol");
        }
    }
    return -1;
}

/* What others say: {"signals":[{"from":ID,"data":TEXT,"age":0},...]}. Who calls first is the peer. */
static void hear_signals(struct connection *daemon, const struct rendezvous *server, struct talk *talk, const char *at) {
    char from[ID_DIGITS + 1], text[MAX_TEXT + 1], address[46], ports[81];
    while ((at = member(at, "from", from, sizeof from)) && (at = member(at, "data", text, sizeof text))) {
        bool is_peer = !strcmp(from, talk->peer);
        if (!strncmp(text, "call ", 5)) {
            if (!talk->calls && !talk->started && sscanf(text, "call %45s %80s", address, ports) == 2) {
                say(daemon, "initiate|chat|udp|%s|%s|lport=%s", ADDRESS(address), PORTS(ports), talk->port);
                strcpy(talk->peer, ID(from));
                talk->started = true;
            }
        } else if (is_peer && talk->started) {
            say(daemon, "respond|chat|%s", TOKEN(text));
        } else if (is_peer) {
            look_up(server, talk, address, sizeof address);
            say(daemon, "respond|chat|%s|peer=%s;lport=%s", TOKEN(text), ADDRESS(address), talk->port);
            talk->started = true;
        }
    }
}

/* Ask the daemon, relay tokens both ways, and return the connected socket. */
static int punch(struct connection *daemon, const struct rendezvous *server, const char *call) {
    char body[MAX_ANSWER + 1];
    struct talk talk = {.calls = call != NULL};
    int hole, ready, status;
    if (call)
        strcpy(talk.peer, ID(call));
    say(daemon, "probe|own|udp");
    struct pollfd wait[] = {{daemon->fd, POLLIN, 0}, {-1, POLLIN, 0}, {server->pulses, POLLIN, 0}};
    while ((ready = poll(wait, 3, PULSE_MS)) >= 0) {
        if (ready == 0)
            pulse(server);
        if (wait[2].revents)
            recv(server->pulses, body, sizeof body, MSG_DONTWAIT); /* the answer to a pulse */
        if (wait[0].revents)
            receive(daemon);
        if ((hole = hear_daemon(daemon, server, &talk)) >= 0) {
            if (wait[1].fd >= 0)
                close(wait[1].fd);
            return hole;
        }
        if (wait[1].revents) {
            if ((status = answer(wait[1].fd, body)) != 200)
                refused(status, body);
            wait[1].fd = -1;
            hear_signals(daemon, server, &talk, body);
        }
        if (wait[1].fd < 0 && talk.port[0]) /* a long poll: it ends when there is something, or after 20 s */
            wait[1].fd = ask(server, "GET", "/signals?wait=20", "");
    }
    fail("poll: %s", strerror(errno));
}

/* Copy both ways until one side says goodbye: an empty datagram, which reads like the end of a TCP connection. */
static void chat(int hole) {
    char chunk[MAX_CHUNK];
    ssize_t count;
    struct pollfd wait[] = {{STDIN_FILENO, POLLIN, 0}, {hole, POLLIN, 0}};
    while (poll(wait, 2, -1) > 0) {
        if (wait[1].revents) {
            if ((count = recv(hole, chunk, sizeof chunk, 0)) == 0)
                return;
            if (count < 0 || write(STDOUT_FILENO, chunk, (size_t)count) != count)
                break;
        }
        if (wait[0].revents) {
            if ((count = read(STDIN_FILENO, chunk, sizeof chunk)) < 0)
                break;
            if (send(hole, chunk, (size_t)count, MSG_NOSIGNAL) != count)
                break;
            if (count == 0) {
                shutdown(hole, SHUT_WR); /* the same goodbye for TCP */
                return;
            }
        }
    }
    fputs("the other side is gone without a goodbye\n", stderr);
}

int main(int argc, char *argv[]) {
    if (argc < 2 || argc > 4) {
        fprintf(stderr, "usage: %s HOST:PORT [CALL [SOCKET]]\n", argv[0]);
        return 2;
    }
    const char *call = argc > 2 && strcmp(argv[2], "-") ? argv[2] : NULL;
    const char *path = argc > 3 ? argv[3] : getenv("PUNCHD_SOCKET");
    if (!path)
        path = access("/run/punchd/punchd.socket", F_OK) ? "/tmp/punchd.socket" : "/run/punchd/punchd.socket";
    struct rendezvous server = {0};
    enter(&server, argv[1]);
    struct connection daemon = {.name = "punchd", .fd = open_daemon(path)};
    int hole = punch(&daemon, &server, call);
    answer(ask(&server, "POST", "/logout", ""), (char[MAX_ANSWER + 1]){0});
    close(daemon.fd); /* the socket is ours: neither daemon nor rendezvous server is needed any more */
    close(server.pulses);
    freeaddrinfo(server.at);
    chat(hole);
    close(hole);
    return 0;
}
