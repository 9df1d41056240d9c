// SPDX-License-Identifier: Apache-2.0
import com.sun.net.httpserver.HttpServer;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicLongArray;

/**
 * A JVM at work: threads, locks, timers, garbage, an http server.
 *
 * Busy PORT-FILE: answers /digest (what must stay as it is), /check (whether what moves fits
 * together) and /progress (a number that grows) on the loopback, at a port it leaves in PORT-FILE.
 */
public class Busy {
    static final int ACCOUNTS = 1000, WORKERS = 3;
    static final long[] accounts = new long[ACCOUNTS];
    static final long[] ballast = new long[4 << 20];
    static final Map<String, Integer> kept = new HashMap<>();
    static final AtomicLong ticks = new AtomicLong();
    static final AtomicLongArray moves = new AtomicLongArray(WORKERS);

    /** Move between accounts, whose sum stays, and leave garbage behind. */
    static void work(int number) {
        long dice = number + 1;
        List<byte[]> garbage = new ArrayList<>();
        for (;;) {
            dice = dice * 6364136223846793005L + 1442695040888963407L;
            int from = (int) (dice >>> 33) % ACCOUNTS, to = (int) (dice >>> 40) % ACCOUNTS;
            synchronized (accounts) {
                accounts[from]--;
                accounts[to]++;
            }
            garbage.add(new byte[1000]);
            if (garbage.size() > 10000)
                garbage = new ArrayList<>();
            moves.incrementAndGet(number);
        }
    }

    static String digest() {
        long hash = 17;
        for (long word : ballast)
            hash = hash * 31 + word;
        for (Map.Entry<String, Integer> entry : kept.entrySet())
            hash += entry.getKey().hashCode() * 37L ^ entry.getValue();
        return Long.toHexString(hash);
    }

    static String check() {
        long sum = 0;
        synchronized (accounts) {
            for (long account : accounts)
                sum += account;
        }
        return sum == 0 && kept.size() == 100000 ? "ok" : "sum " + sum + ", kept " + kept.size();
    }

    static String progress() {
        long least = ticks.get();
        for (int i = 0; i < WORKERS; i++)
            least = Math.min(least, moves.get(i));
        return Long.toString(least);
    }

    static String answer(String question) {
        return question.equals("/digest") ? digest()
            : question.equals("/check") ? check() : progress();
    }

    public static void main(String[] args) throws Exception {
        for (int i = 0; i < ballast.length; i++)
            ballast[i] = i * 0x9e3779b97f4a7c15L;
        for (int i = 0; i < 100000; i++)
            kept.put("key " + i, i * 7);
        for (int i = 0; i < WORKERS; i++) {
            int number = i;
            Thread thread = new Thread(() -> work(number));
            thread.setDaemon(true);
            thread.start();
        }
        Executors.newScheduledThreadPool(1)
            .scheduleAtFixedRate(ticks::incrementAndGet, 5, 5, TimeUnit.MILLISECONDS);
        HttpServer server =
            HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
        server.createContext("/", exchange -> {
            byte[] text = answer(exchange.getRequestURI().getPath()).getBytes();
            exchange.getResponseHeaders().set("Connection", "close");
            exchange.sendResponseHeaders(200, text.length);
            exchange.getResponseBody().write(text);
            exchange.close();
        });
        server.start();
        Path draft = Path.of(args[0] + ".new");
        Files.writeString(draft, Integer.toString(server.getAddress().getPort()));
        Files.move(draft, Path.of(args[0]), StandardCopyOption.ATOMIC_MOVE);
    }
}
