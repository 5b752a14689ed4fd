// Clones this machine as fork() copies a process, and tells in each machine which one it is.
// usage: java Fork.java [COUNT [FILE]]      (Java 16 or later)
import java.io.BufferedReader;
import java.io.IOException;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.regex.Pattern;

public class Fork {
    private final SocketChannel agent = SocketChannel.open(StandardProtocolFamily.UNIX);
    private final BufferedReader lines;

    Fork() throws IOException {
        agent.connect(UnixDomainSocketAddress.of("/run/gridcentric/agent.sock"));
        lines = new BufferedReader(Channels.newReader(agent, StandardCharsets.UTF_8));
    }

    /** A call is a line, and so is its answer. */
    String call(String line) throws IOException {
        for (ByteBuffer bytes = StandardCharsets.UTF_8.encode(line + "\n"); bytes.hasRemaining();) agent.write(bytes);
        String answer = lines.readLine();
        if (answer == null) throw new IOException("gc-agent has gone");
        if (answer.startsWith("{\"error\":")) {
            System.err.println("Fork: " + answer);
            System.exit(Integer.parseInt(find("\"code\":(\\d+)", answer)));
        }
        return answer;
    }

    static String find(String pattern, String text) {
        var found = Pattern.compile(pattern).matcher(text);
        if (!found.find()) throw new IllegalArgumentException(text);
        return found.group(1);
    }

    public static void main(String[] args) throws IOException {
        var agent = new Fork();
        String memory = "from before";
        String count = args.length > 0 ? args[0] : "1";
        // Every machine goes on here, with all that this program had.
        String cloned = agent.call("{\"verb\":\"clone\",\"args\":{\"count\":" + count + "}}");
        String ip = find("\"ok\":\"([^\"]*)\"", agent.call("{\"verb\":\"my-ip\"}"));
        String clones = find("\"clones\":\\[([\\d,]*)\\]", cloned).replace(',', ' ');
        String told = String.join(" ", find("\"vmid\":(\\d+)", cloned), ip, memory, clones).strip() + "\n";
        if (args.length > 1) Files.writeString(Path.of(args[1]), told);
        else System.out.print(told);
    }
}
