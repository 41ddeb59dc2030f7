/* What the kernel can do: a sender with UDP_SEGMENT, a receiver with UDP_GRO, and nothing else. For media_speed.py, as
 * iperf3 -u --gsro (3.18 or newer) is where it can be had.
 *
 *   udp_reference send HOST PORT CORE SECONDS DATAGRAM    prints bytes, seconds, CPU seconds
 *   udp_reference receive PORT CORE                       the same, once nothing has come for half a second
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/udp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

static char buffer[65536];

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static double spent(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void pin(int core) {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(core, &cores);
    sched_setaffinity(0, sizeof cores, &cores);
}

static void report(double bytes, double seconds, double cpu) {
    printf("{\"bytes\": %.0f, \"seconds\": %.6f, \"cpu_s\": %.6f}\n", bytes, seconds, cpu);
}

static int send_all(const char *host, int port, double seconds, int datagram) {
    int sock = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    size_t batch = (65507 / datagram < 64 ? 65507 / datagram : 64) * (size_t)datagram;
    double begun = now(), cpu = spent(), bytes = 0;
    if (inet_pton(AF_INET, host, &to.sin_addr) != 1 || connect(sock, (void *)&to, sizeof to) ||
        setsockopt(sock, IPPROTO_UDP, UDP_SEGMENT, &datagram, sizeof datagram)) {
        perror("udp_reference");
        return 1;
    }
    while (now() - begun < seconds) {
        ssize_t sent = send(sock, buffer, batch, 0);
        if (sent > 0)
            bytes += sent;
    }
    report(bytes, now() - begun, spent() - cpu);
    return 0;
}

static int receive_all(int port) {
    int sock = socket(AF_INET, SOCK_DGRAM, 0), one = 1, room = 4 << 20;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct timeval patience = {.tv_usec = 500000};
    double begun = 0, last = 0, bytes = 0, cpu = 0, cpu_last = 0;
    if (bind(sock, (void *)&at, sizeof at) || setsockopt(sock, IPPROTO_UDP, UDP_GRO, &one, sizeof one)) {
        perror("udp_reference");
        return 1;
    }
    setsockopt(sock, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    for (;;) {
        ssize_t got = recv(sock, buffer, sizeof buffer, 0);
        if (got < 0)
            break;
        if (!begun) {
            begun = now();
            cpu = spent();
            setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        }
        bytes += got;
        last = now();
        cpu_last = spent();
    }
    report(bytes, last - begun, cpu_last - cpu);
    return 0;
}

int main(int count, char **words) {
    if (count == 7 && !strcmp(words[1], "send")) {
        pin(atoi(words[4]));
        return send_all(words[2], atoi(words[3]), atof(words[5]), atoi(words[6]));
    }
    if (count == 4 && !strcmp(words[1], "receive")) {
        pin(atoi(words[3]));
        return receive_all(atoi(words[2]));
    }
    return 2;
}
