/* Chat over a connection that punchd makes: chat.py in C, to show the line protocol without a library.
 *
 *     cc -std=c11 -Wall -Wextra -Werror -O2 -o chat chat.c
 *     chat HOST:PORT NAME [CALL [SOCKET]]     HOST:PORT: of rendezvous.py; CALL: whom to call, - to be called
 *
 * Lines of standard input go to the other side, what comes from there goes to standard output, news go to standard
 * error. Exit code 0 after a chat, 1 with one line of explanation if there was none. What chat.py says of lost
 * datagrams, NATs that forget and missing encryption holds here too.
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
enum { MAX_LINE = 500, MAX_FIELDS = 12, MAX_FDS = 8, MAX_CHUNK = 1200, MIN_TOKEN = 19, MAX_TOKEN = 200 };

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
static int next_line(struct connection *from, char separator, char line[MAX_LINE + 1], char *fields[MAX_FIELDS]) {
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
        if ((field = strchr(field, separator)))
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

static int open_rendezvous(char *where) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    char *colon = strrchr(where, ':');
    if (!colon)
        fail("expected HOST:PORT, got %s", where);
    *colon = '\0';
    int code = getaddrinfo(where, colon + 1, &hints, &found);
    if (code)
        fail("%s: %s", where, gai_strerror(code));
    for (struct addrinfo *one = found; one; one = one->ai_next) {
        int fd = socket(one->ai_family, one->ai_socktype | SOCK_CLOEXEC, one->ai_protocol);
        if (fd >= 0 && connect(fd, one->ai_addr, one->ai_addrlen) == 0) {
            freeaddrinfo(found);
            return fd;
        }
        if (fd >= 0)
            close(fd);
    }
    fail("the rendezvous server at %s port %s: %s", where, colon + 1, strerror(errno));
}

/* What others say goes into request lines only if it is what it should be: no '|' slips in. */
static const char *checked(const char *word, const char *allowed, size_t least, size_t most) {
    size_t length = strlen(word);
    if (length < least || length > most || strspn(word, allowed) != length)
        fail("the rendezvous server sent nonsense");
    return word;
}
#define ADDRESS(word) checked(word, "0123456789abcdef.:", 2, 45)
#define PORTS(word) checked(word, "0123456789,-", 1, 80)
#define TOKEN(word) checked(word, BASE64URL, MIN_TOKEN, MAX_TOKEN)

/* Ask the daemon, relay tokens both ways, and return the connected socket. "own" and "chat" are our ids. */
static int punch(struct connection *daemon, struct connection *side, const char *name, const char *call) {
    char line[MAX_LINE + 1], peer[33] = "", port[6] = "", *field[MAX_FIELDS];
    bool started = false;
    int count;
    if (call)
        snprintf(peer, sizeof peer, "%s", call);
    say(daemon, "probe|own|udp");
    struct pollfd wait[] = {{daemon->fd, POLLIN, 0}, {side->fd, POLLIN, 0}};
    while (poll(wait, 2, -1) > 0) {
        if (wait[0].revents)
            receive(daemon);
        while ((count = next_line(daemon, '|', line, field))) {
            if (count >= 8 && !strcmp(field[0], "ok") && !strcmp(field[2], "probe")) {
                /* ok|own|probe|udp|IP|PORTS|MAPPING|LPORT */
                fprintf(stderr, "own address: %s port %s\n", field[4], field[5]);
                snprintf(port, sizeof port, "%s", field[7]);
                say(side, "register %s %s %s", name, field[4], field[5]);
            } else if (count >= 8 && !strcmp(field[0], "ok") && daemon->queued) {
                /* ok|chat|TECHNIQUE|PROTO|IP|PORT|IP|PORT, and the descriptor at the head of the queue */
                fprintf(stderr, "connected by %s to %s port %s\n", field[2], field[6], field[7]);
                return daemon->fds[0];
            } else if (count >= 6 && !strcmp(field[0], "progress")) {
                /* progress|chat|ROUND|TECHNIQUE|STAGE|DETAIL; the detail of "relay" is the token, not for logs */
                bool relay = !strcmp(field[4], "relay");
                fprintf(stderr, "round %s %s: %s %s\n", field[2], field[3], field[4], relay ? "" : field[5]);
                if (relay)
                    say(side, "send %s %s", peer, field[5]);
            } else if (count >= 4 && !strcmp(field[0], "error")) {
                fail("%s: %s", field[2], field[3]);
            } else {
                fail("punchd broke the protocol");
            }
        }
        if (wait[1].revents)
            receive(side);
        while ((count = next_line(side, ' ', line, field))) { /* "undelivered" is none of our business */
            if (!strcmp(field[0], "error")) {
                for (int i = 2; i < count; i++)
                    field[i][-1] = ' '; /* one text again */
                fail("the rendezvous server says: %s", count > 1 ? field[1] : "error");
            } else if (!strcmp(field[0], "registered")) {
                fprintf(stderr, "registered as %s\n", name);
                if (call)
                    say(side, "lookup %s", peer);
            } else if (count == 4 && !strcmp(field[0], "found") && !started) {
                say(daemon, "initiate|chat|udp|%s|%s|lport=%s", ADDRESS(field[2]), PORTS(field[3]), port);
                started = true;
            } else if (count == 4 && !strcmp(field[0], "from") && !peer[0]) {
                snprintf(peer, sizeof peer, "%s", field[1]);
                say(daemon, "respond|chat|%s|peer=%s;lport=%s", TOKEN(field[3]), ADDRESS(field[2]), port);
                started = true;
            } else if (count == 4 && !strcmp(field[0], "from") && started && !strcmp(field[1], peer)) {
                say(daemon, "respond|chat|%s", TOKEN(field[3]));
            }
        }
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
    if (argc < 3 || argc > 5) {
        fprintf(stderr, "usage: %s HOST:PORT NAME [CALL [SOCKET]]\n", argv[0]);
        return 2;
    }
    const char *call = argc > 3 && strcmp(argv[3], "-") ? argv[3] : NULL;
    const char *path = argc > 4 ? argv[4] : getenv("PUNCHD_SOCKET");
    if (!path)
        path = access("/run/punchd/punchd.socket", F_OK) ? "/tmp/punchd.socket" : "/run/punchd/punchd.socket";
    struct connection side = {.name = "the rendezvous server", .fd = open_rendezvous(argv[1])};
    struct connection daemon = {.name = "punchd", .fd = open_daemon(path)};
    int hole = punch(&daemon, &side, argv[2], call);
    close(daemon.fd); /* the socket is ours: neither daemon nor rendezvous server is needed any more */
    close(side.fd);
    chat(hole);
    close(hole);
    return 0;
}
